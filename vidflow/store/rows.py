"""Tables of records: flat dataclasses as a Parquet file with its digest in a JSON file beside it, and back."""

import dataclasses
import hashlib
import typing
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vidflow.errors import DamagedError
from vidflow.store.layout import damage, list_file, publish, publish_json, read_json

Row = TypeVar("Row")
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def write_rows(path: Path, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Publish records as Parquet; the bytes depend on the records alone."""
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in dataclasses.fields(row_type)}  # type: ignore[arg-type]
    with publish(path) as aside:
        pq.write_table(pa.table(columns, schema=_schema(row_type)), aside, compression="zstd")
        # Before the table: whoever finds a table finds its digest.
        publish_json(_digest_path(path), {"files": [list_file(aside, path.name)]})


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the records of a table that `write_rows` wrote; no byte is parsed before the digest is compared.

    Raises:
        DamagedError: If it is gone, or is not what was written; then it is set aside.
    """
    listed = read_json(_digest_path(path))
    if listed is None:
        raise damage(path, f"no digest beside it in {_digest_path(path).name}")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: gone; `vidflow run` makes it again") from error
    if hashlib.sha256(data).hexdigest() != listed["files"][0]["sha256"]:
        raise damage(path, "its bytes are not those that were written")
    table = pq.read_table(pa.BufferReader(data), schema=_schema(row_type))
    return [row_type(**row) for row in table.to_pylist()]


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _schema(row_type: type[Any]) -> pa.Schema:
    return pa.schema([(name, _arrow_type(hint)) for name, hint in typing.get_type_hints(row_type).items()])


def _arrow_type(hint: Any) -> pa.DataType:
    if isinstance(hint, UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return _ARROW_TYPES[hint]
