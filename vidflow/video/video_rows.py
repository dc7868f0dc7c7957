"""The rows of a manifest in columns: a million rows take the memory of their text, not that of a million objects."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from vidflow.records import VideoItem

# Large strings, because the text of all rows together may exceed 2 GiB.
SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),
        ("label", pa.large_string()),
        ("split", pa.large_string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("annotations", pa.large_string()),
        ("sha256", pa.large_string()),
    ]
)
Row = tuple[str, str, str, float | None, float | None, str | None, str | None]
"""The values of one row, in the order of the columns."""
_ROWS_PER_BATCH = 1 << 14


class VideoRows(Sequence[VideoItem]):
    """Rows in their order, each a `VideoItem` when it is asked for.

    Attributes:
        table: The columns of `SCHEMA`.
    """

    def __init__(self, table: pa.Table) -> None:
        """Keep the columns, each as one piece, so that rows are found at once."""
        self.table = table.combine_chunks()

    @classmethod
    def collect(cls, rows: Iterable[Row]) -> "VideoRows":
        """Return rows in columns; they are taken a batch at a time."""
        batches, rows = [], iter(rows)
        while batch := list(islice(rows, _ROWS_PER_BATCH)):
            columns = zip(zip(*batch, strict=True), SCHEMA, strict=True)
            batches.append(pa.record_batch([pa.array(values, field.type) for values, field in columns], SCHEMA))
        return cls(pa.Table.from_batches(batches, SCHEMA))

    @classmethod
    def of(cls, items: Sequence[VideoItem]) -> "VideoRows":
        """Return the same rows in columns."""
        return items if isinstance(items, VideoRows) else cls.collect(map(_as_row, items))

    def take(self, chosen: pa.Array) -> "VideoRows":
        """Return the rows for which a mask is true."""
        return VideoRows(self.table.filter(chosen))

    def in_splits(self, splits: Iterable[str]) -> "VideoRows":
        """Return the rows of some splits."""
        return self.take(pc.is_in(self.table["split"], pa.array(list(splits), pa.large_string())))

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """Yield the values of some columns, many rows at a time."""
        for batch in self.table.select(columns).to_batches(_ROWS_PER_BATCH):
            yield batch.to_pydict()

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> VideoItem: ...
    @overload
    def __getitem__(self, index: slice) -> "VideoRows": ...
    def __getitem__(self, index: int | slice) -> "VideoItem | VideoRows":
        """Return a row, or consecutive rows in columns."""
        if isinstance(index, slice):
            return VideoRows(self.table.take(pa.array(range(len(self))[index], pa.int64())))
        (row,) = self.table.slice(range(len(self))[index], 1).to_pylist()
        return _as_item(*row.values())

    def __iter__(self) -> Iterator[VideoItem]:
        """Yield the rows in order."""
        for batch in self.batches(SCHEMA.names):
            yield from map(_as_item, *batch.values())

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same rows."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it may be large

    def __repr__(self) -> str:
        """Return a short text for messages."""
        return f"VideoRows({len(self)} rows)"


def _as_row(item: VideoItem) -> Row:
    annotations = None if item.annotations is None else str(item.annotations)
    return (
        str(item.path),
        item.label,
        item.split,
        item.start_seconds,
        item.end_seconds,
        annotations,
        item.sha256,
    )


def _as_item(
    path: str,
    label: str,
    split: str,
    start_seconds: float | None,
    end_seconds: float | None,
    annotations: str | None,
    sha256: str | None,
) -> VideoItem:
    return VideoItem(
        path=Path(path),
        label=label,
        split=split,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        annotations=None if annotations is None else Path(annotations),
        sha256=sha256,
    )


__all__ = ["SCHEMA", "Row", "VideoRows"]
