"""Tables under the root that save time and can be made again: the rows of a manifest, and the clips chosen of them.

A table is named after the hash of everything that it is made from, so one that is found is never out of date.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidflow.errors import DamagedError
from vidflow.files import file_state
from vidflow.store.layout import list_files, publish_json, read_json, remove
from vidflow.store.rows import read_table, write_table

_MOST_KEPT = 4
"""Tables of each kind that stay on disk."""
_FACTS = ".facts.json"


class KeptTables:
    """Tables of some kinds; the last of each kind stays in memory too."""

    def __init__(self, directory: Path) -> None:
        """Read nothing yet."""
        self._directory = directory
        self._last: dict[str, tuple[str, pa.Table, dict[str, Any]]] = {}
        self._unwritten: set[str] = set()

    def get(self, kind: str, digest: str, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]] | None:
        """Return a table and the facts beside it; None if it is not there."""
        known = self._last.get(kind)
        if known is not None and known[0] == digest:
            return known[1:]
        path = self._path(kind, digest)
        if (facts := read_json(path.with_suffix(_FACTS))) is None:
            return None
        try:
            table = read_table(path, schema)
        except DamagedError:
            return None
        self._last[kind] = (digest, table, facts)
        return table, facts

    def put(self, kind: str, digest: str, table: pa.Table, facts: dict[str, Any]) -> None:
        """Keep a table in memory until `write`."""
        self._last[kind] = (digest, table, facts)
        self._unwritten.add(kind)

    def write(self) -> None:
        """Publish the new tables, and remove the oldest; only the holder of the root's lock may call this."""
        for kind in sorted(self._unwritten):
            digest, table, facts = self._last[kind]
            path = self._path(kind, digest)
            write_table(path, table)
            publish_json(path.with_suffix(_FACTS), facts)  # last, as it is read first
            self._remove_old(kind)
        self._unwritten.clear()

    def _path(self, kind: str, digest: str) -> Path:
        return self._directory / f"{kind}-{digest}.parquet"

    def _remove_old(self, kind: str) -> None:
        found = sorted(list_files(self._directory, f"{kind}-*.parquet"), key=lambda path: file_state(path).modified_ns)
        for path in found[:-_MOST_KEPT]:
            for each in (path.with_suffix(_FACTS), path, path.with_name(f"{path.name}.json")):
                remove(each)


def table_digest(tables: Iterable[pa.Table], settings: str) -> str:
    """Return the hash of the values of some tables, and of the settings that something is made with."""
    hashed = hashlib.sha256(settings.encode())
    for table in tables:
        with pa.PythonFile(_Hashing(hashed), "w") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
    return hashed.hexdigest()[:16]


class _Hashing:
    """A file whose bytes are only hashed."""

    closed = False

    def __init__(self, hashed: Any) -> None:
        self._hashed = hashed

    def write(self, data: Any) -> int:
        self._hashed.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


__all__ = ["KeptTables", "table_digest"]
