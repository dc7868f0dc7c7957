"""Records on their way to a tracking store: written under the root first, and deleted once the store has them.

Each record is a sealed file, and their names are in the order in which they were written. So a kill at any moment
loses no record, and it works on an object store, where nothing can be appended to a file.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidflow.store.layout import list_files, publish_json, read_json, remove

JOURNAL = "journal"
"""Folder under the root; a subfolder per sweep."""


class Journal:
    """The records of one sweep or evaluation that wait for a store. One process at a time writes it.

    Args:
        root: The experiment's root.
        name: Key of the sweep or evaluation.
        store: Name of the store that the records are for, without a password.
    """

    def __init__(self, root: Path, name: str, store: str) -> None:
        self.root, self.name, self._store = root, name, store
        self.directory = root / JOURNAL / name
        self.left = list_files(self.directory, "*.json")
        """The records that earlier processes have left, in order."""
        self._next = int(self.left[-1].stem) + 1 if self.left else 0
        self._lock = threading.Lock()

    def append(self, record: dict[str, Any]) -> Path:
        """Write a record behind all others, and return its file.

        Raises:
            OSError: If it cannot be written.
        """
        with self._lock:
            path = self.directory / f"{self._next:08d}.json"
            # As text, which keeps the order of keys: MLflow shows metrics in it.
            publish_json(path, {"store": self._store, "record": json.dumps(record)})
            self._next += 1
        return path

    def read_left(self) -> Iterator[dict[str, Any]]:
        """Yield the records that earlier processes have left and that wait still."""
        yield from filter(None, map(read_record, self.left))


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a record; None if its file is gone, or is damaged and was set aside."""
    value = read_json(path)
    record: dict[str, Any] | None = json.loads(value["record"]) if value is not None else None
    return record


def drop_record(path: Path) -> None:
    """Delete a record that the store has."""
    remove(path)


def count_waiting(root: Path) -> dict[tuple[str, str], int]:
    """Return (name of a journal, its store) -> number of its records that wait under a root."""
    waiting = list_files(root / JOURNAL, "**/*.json")
    number = Counter(path.parent.name for path in waiting)
    firsts = {path.parent.name: path for path in reversed(waiting)}
    stores = {name: (read_json(first) or {"store": ""})["store"] for name, first in firsts.items()}
    return {(name, stores[name]): count for name, count in number.items()}
