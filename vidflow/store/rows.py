"""Write and read tables of records: flat dataclasses as a Parquet file, with its digest in a JSON file beside it.

The JSON file is replaced first, and also holds the digest of the old table. So at every moment a reader finds a table
and its digest, even while a writer is at work or after it was killed.
"""

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
from vidflow.files import file_sha256
from vidflow.store.layout import damage, list_file, publish, publish_json, read_json, read_sealed

Row = TypeVar("Row")
REPLACED = "replaced_sha256"
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def write_rows(path: Path, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Publish records as Parquet; the bytes depend on the records alone."""
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in dataclasses.fields(row_type)}  # type: ignore[arg-type]
    with publish(path) as aside:
        pq.write_table(pa.table(columns, schema=_schema(row_type)), aside, compression="zstd")
        publish_json(_digest_path(path), {"files": [list_file(aside, path.name)], REPLACED: _intact_sha256(path)})


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the records of a table that `write_rows` wrote; no byte is parsed before the digest is compared.

    Raises:
        DamagedError: If it is missing, or its bytes are not those that were written; then it is set aside.
    """
    columns = read_columns(path, row_type)
    return [row_type(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def read_columns(path: Path, row_type: type[Any]) -> dict[str, list[Any]]:
    """Return the records of a table as one list per field, in a tenth of the time of `read_rows`.

    Raises:
        DamagedError: As `read_rows`.
    """
    table = pq.read_table(pa.BufferReader(_read_intact(path)), schema=_schema(row_type))
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _read_intact(path: Path) -> bytes:
    """Return the bytes of a table after comparing them with the digests beside it, also while a writer replaces it."""
    listed = read_json(_digest_path(path))
    while True:
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(f"{path}: gone; `vidflow run` makes it again") from error
        if hashlib.sha256(data).hexdigest() in _digests(listed):
            return data
        before, listed = listed, read_json(_digest_path(path))
        if listed != before:
            continue  # a writer has replaced the table
        if listed is None:
            raise damage(path, f"no digest beside it in {_digest_path(path).name}")
        raise damage(path, "its bytes are not those that were written")


def _intact_sha256(path: Path) -> str | None:
    """Return the digest of the present table; None if there is no table or it is damaged."""
    digests = _digests(read_sealed(_digest_path(path)))
    found = file_sha256(path) if digests and path.is_file() else None
    return found if found in digests else None


def _digests(listed: dict[str, Any] | None) -> list[str | None]:
    """Return the digests that the table may have: the new one's and the old one's."""
    return [] if listed is None else [listed["files"][0]["sha256"], listed.get(REPLACED)]


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _schema(row_type: type[Any]) -> pa.Schema:
    return pa.schema([(name, _arrow_type(hint)) for name, hint in typing.get_type_hints(row_type).items()])


def _arrow_type(hint: Any) -> pa.DataType:
    if typing.get_origin(hint) is typing.Literal:
        hint = type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return _arrow_type(next(part for part in typing.get_args(hint) if part is not type(None)))
    return _ARROW_TYPES[hint]
