"""Scans in columns: a million of them take the memory of their text, and are found by a column of paths."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from vidflow.stages.scan import ScanInput, ScannedVideo
from vidflow.store.rows import schema_of

# Large strings, because the text of all scans together may exceed 2 GiB.
SCHEMA = pa.schema(
    [
        (field.name, pa.large_string() if pa.types.is_string(field.type) else field.type)
        for field in schema_of(ScannedVideo)
    ]
)


class ScanColumns:
    """The newest scan of each file that was scanned in one role.

    Attributes:
        table: The columns of `ScannedVideo`, each as one piece.
    """

    def __init__(self, table: pa.Table, *, is_distinct: bool = False) -> None:
        """Keep the last row of each path.

        Args:
            table: Scans, the oldest first.
            is_distinct: Whether it is known that no path is there twice.
        """
        if not is_distinct and pc.count_distinct(table["path"]).as_py() < len(table):
            codes = table["path"].combine_chunks().dictionary_encode()
            last = np.zeros(len(codes.dictionary), np.int64)
            last[codes.indices.to_numpy()] = np.arange(len(table))
            table = table.take(np.sort(last))
        self.table = table.combine_chunks()

    def find(self, values: pa.Array, column: str = "path") -> Int64[np.ndarray, " R"]:
        """Return the row that has each value in a column, -1 for none; null is never found."""
        found = pc.index_in(values, value_set=self.table[column], skip_nulls=True)
        rows: Int64[np.ndarray, " R"] = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return rows

    def __getitem__(self, row: int) -> ScannedVideo:
        """Return the scan in a row."""
        (values,) = self.table.slice(row, 1).to_pylist()
        return ScannedVideo(**values)


class Scans(NamedTuple):
    """Scans by role: those of files as videos, and those of files as ground truth."""

    videos: ScanColumns
    truths: ScanColumns

    @classmethod
    def of_table(cls, table: pa.Table, *, is_distinct: bool = False) -> "Scans":
        """Return the scans of a table of both roles, the oldest first; `is_distinct` as for `ScanColumns`."""
        is_video = table["is_video"]
        if pc.all(is_video).as_py():  # no copy for the usual case
            return cls(
                ScanColumns(table, is_distinct=is_distinct), ScanColumns(SCHEMA.empty_table())
            )  # a slice would keep the memory of all
        return cls(ScanColumns(table.filter(is_video)), ScanColumns(table.filter(pc.invert(is_video))))

    @classmethod
    def of(cls, rows: Iterable[ScannedVideo]) -> "Scans":
        """Return some scans in columns."""
        return cls.of_table(as_table(list(rows)))

    def in_role(self, *, is_video: bool) -> ScanColumns:
        """Return the scans of one role."""
        return self.videos if is_video else self.truths

    def get(self, scanned: ScanInput) -> ScannedVideo | None:
        """Return the scan of an input, or None."""
        scans = self.in_role(is_video=scanned.is_video)
        (row,) = scans.find(pa.array([scanned.path], pa.large_string())).tolist()
        return None if row < 0 else scans[row]


def as_table(rows: Sequence[ScannedVideo]) -> pa.Table:
    """Return scans as a table."""
    return pa.table({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, schema=SCHEMA)


__all__ = ["SCHEMA", "ScanColumns", "Scans", "as_table"]
