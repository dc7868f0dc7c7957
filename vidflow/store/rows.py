"""Write and read tables of records: flat dataclasses as a Parquet file, with its digest in a JSON file beside it.

The JSON file is replaced first, and also holds the digest of the old table. So at every moment a reader finds a table
and its digest, even while a writer is at work or after it was killed.
"""

import hashlib
import typing
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vidflow.errors import DamagedError
from vidflow.store.layout import damage, list_file, publish, publish_json, read_bytes, read_json, read_sealed

Row = TypeVar("Row")
REPLACED = "replaced_sha256"
_ROWS_PER_BATCH = 1 << 14
_SMALL_BYTES = 1 << 20
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row]) -> int:
    """Publish records as Parquet and return their number; the bytes depend on the records alone."""
    schema, rows = schema_of(row_type), iter(rows)
    batches = []
    while some := list(islice(rows, _ROWS_PER_BATCH)):
        columns = [[getattr(row, name) for row in some] for name in schema.names]
        batches.append(pa.record_batch([pa.array(*each) for each in zip(columns, schema.types, strict=True)], schema))
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    write_table(path, table)
    return int(table.num_rows)


def write_table(path: Path, table: pa.Table) -> None:
    """Publish a table as Parquet; the bytes depend on its values alone."""
    with publish(path) as aside:
        pq.write_table(table, aside, compression="zstd")
        publish_json(_digest_path(path), {"files": [list_file(aside, path.name)], REPLACED: _intact_sha256(path)})


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Return the records of a table that `write_rows` wrote; no byte is parsed before the digest is compared.

    Raises:
        DamagedError: If it is missing, or its bytes are not those that were written; then it is set aside.
    """
    return list(iterate_rows(path, row_type))


def iterate_rows(path: Path, row_type: type[Row]) -> Iterator[Row]:
    """Yield the records of a table, few of which are objects at a time.

    Raises:
        DamagedError: As `read_rows`.
    """
    schema = schema_of(row_type)
    for batch in read_table(path, schema).to_batches(_ROWS_PER_BATCH):
        for row in zip(*batch.to_pydict().values(), strict=True):
            yield row_type(**dict(zip(schema.names, row, strict=True)))


def read_columns(path: Path, row_type: type[Any]) -> dict[str, list[Any]]:
    """Return the records of a table as one list per field, in a tenth of the time of `read_rows`.

    Raises:
        DamagedError: As `read_rows`.
    """
    table = read_table(path, schema_of(row_type))
    return {name: table.column(name).to_pylist() for name in table.column_names}


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a table that was written here, with the columns of a schema; a column that it does not have is null.

    Raises:
        DamagedError: As `read_rows`.
    """
    data = _read_intact(path)
    # Not `pq.read_table`, and no threads for a small file: each takes several times as long.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        table = file.read(use_threads=len(data) > _SMALL_BYTES)
    names = set(table.column_names)
    if schema.names == table.column_names:
        return table.cast(schema)
    columns = [table[f.name].cast(f.type) if f.name in names else pa.nulls(len(table), f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _read_intact(path: Path) -> bytes:
    """Return the bytes of a table after comparing them with the digests beside it, also while a writer replaces it."""
    listed = read_json(_digest_path(path))
    while True:
        if (data := read_bytes(path)) is None:
            raise DamagedError(f"{path}: gone; `vidflow run` makes it again")
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
    data = read_bytes(path) if digests else None
    found = None if data is None else hashlib.sha256(data).hexdigest()
    return found if found in digests else None


def _digests(listed: dict[str, Any] | None) -> list[str | None]:
    """Return the digests that the table may have: the new one's and the old one's."""
    return [] if listed is None else [listed["files"][0]["sha256"], listed.get(REPLACED)]


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def schema_of(row_type: type[Any]) -> pa.Schema:
    """Return the schema of a table of records."""
    return pa.schema([(name, _arrow_type(hint)) for name, hint in typing.get_type_hints(row_type).items()])


def _arrow_type(hint: Any) -> pa.DataType:
    if typing.get_origin(hint) is typing.Literal:
        hint = type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return _arrow_type(next(part for part in typing.get_args(hint) if part is not type(None)))
    return _ARROW_TYPES[hint]
