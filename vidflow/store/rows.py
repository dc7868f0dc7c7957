"""Tables of records: a list of flat dataclasses as a Parquet file, and back."""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vidflow.store.layout import publish

Row = TypeVar("Row")
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def write_rows(path: Path, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Publish records as Parquet; the bytes depend on the records alone."""
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in dataclasses.fields(row_type)}  # type: ignore[arg-type]
    with publish(path) as aside:
        pq.write_table(pa.table(columns, schema=_schema(row_type)), aside, compression="zstd")


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the records of a Parquet file.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    return [row_type(**row) for row in pq.read_table(path, schema=_schema(row_type)).to_pylist()]


def _schema(row_type: type[Any]) -> pa.Schema:
    return pa.schema([(name, _arrow_type(hint)) for name, hint in typing.get_type_hints(row_type).items()])


def _arrow_type(hint: Any) -> pa.DataType:
    if isinstance(hint, UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return _ARROW_TYPES[hint]
