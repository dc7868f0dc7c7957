"""All scans ever made under one root: Parquet parts, from time to time replaced by one part with the newest scans.

A file that changed after its scan is scanned again. A file that has moved together with its folder is not: see
`VideoIndex.missing`.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from vidflow.errors import DamagedError
from vidflow.files import FileState, file_stamps, file_state
from vidflow.stages.scan import ScanInput, ScannedVideo
from vidflow.stages.scans import SCHEMA, ScanColumns, Scans, as_table
from vidflow.stages.transient import TRANSIENT, Limits
from vidflow.store.layout import list_files, remove
from vidflow.store.rows import read_table, write_table
from vidflow.video.video_rows import VideoRows

# No file has this state, so an input with it is scanned again.
_FORGOTTEN = FileState(-1, -1, -1)
# Parts that are read one by one before they become one; each has the scans of one unit of work.
_MOST_PARTS = 256
_PATHS_PER_BATCH = 1 << 14
log = logging.getLogger(__name__)


class VideoIndex:
    """The scans under one root."""

    def __init__(self, directory: Path, limits: Limits, folders: Iterable[Path] = ()) -> None:
        """Read every part.

        Args:
            directory: Folder of the parts.
            limits: Present limits of a scan.
            folders: Folders of the videos; a file below one of them is known by its name there if the folder moves.
        """
        self.directory = directory
        self._limits = limits
        self._folders = [os.path.abspath(folder) for folder in folders]
        self._parts, table = self._read()
        self._has_moved = False
        self._added: list[pa.Table] = []
        # Each part has the newest scan of a file only. To look for others takes longer than to read the part.
        self._scans = Scans.of_table(table, is_distinct=len(self._parts) == 1)

    @property
    def scans(self) -> Scans:
        """The newest scan of every file."""
        if self._added:
            self._scans = Scans.of_table(
                pa.concat_tables([self._scans.videos.table, self._scans.truths.table, *self._added])
            )
            self._added = []
        return self._scans

    @property
    def is_current(self) -> bool:
        """Whether the parts on disk are those that were read and added here."""
        return self._list_parts() == self._parts

    def missing(self, inputs: Iterable[ScanInput]) -> list[ScanInput]:
        """Return the inputs to scan: new ones, changed ones, and transient failures that may succeed now.

        A file that is not known by its path is not new if it has moved together with its folder: a file of the same
        name in the folder of the videos had the same size and time of the last write when it was scanned, and is no
        longer at its old path. Where an old file is still there, the other one may be another, so it is scanned.
        """
        inputs = list(inputs)
        found: list[ScanInput] = []
        for is_video in (True, False):
            paths = pa.array([each.path for each in inputs if each.is_video == is_video], pa.large_string())
            found += self._stale(pc.unique(paths), is_video=is_video)
        return sorted(found)

    def missing_of(self, rows: VideoRows) -> list[ScanInput]:
        """Return the files of the rows of a manifest that must be scanned, as `missing` does."""
        found: list[ScanInput] = []
        for column, is_video in (("path", True), ("annotations", False)):
            paths = pc.unique(rows.table[column])
            found += self._stale(pc.drop_null(paths), is_video=is_video)
        return sorted(found)

    def add(self, rows: Sequence[ScannedVideo]) -> None:
        """Publish one more part; when there are many, replace them by one."""
        table = as_table([replace(row, name=self._name_of(row.path)) for row in rows])
        # The time comes first, so that parts are read in the order they were made and the newest scan is used.
        name = f"{time.time_ns():020d}-{hashlib.sha256(rows[0].path.encode()).hexdigest()[:8]}.parquet"
        write_table(self.directory / name, table)
        self._parts.append(self.directory / name)
        self._added.append(table)
        if len(self._parts) >= _MOST_PARTS:
            self.compact()

    def compact(self) -> None:
        """Replace the parts by one with the newest scan of every file; only the holder of the root's lock may call it.

        The new part is published before the old ones are removed, so whoever reads meanwhile finds every scan, and so
        does whoever reads after this process was killed.
        """
        if len(self._parts) < 2 and not self._has_moved:
            return
        scans, old = self.scans, self._parts
        # Its name begins with the time of the newest part in it: a part that another process adds later stays newer.
        names = hashlib.sha256(" ".join(part.name for part in old).encode()).hexdigest()[:8]
        merged = self.directory / f"{max(part.name for part in old).partition('-')[0]}-{names}.parquet"
        write_table(merged, pa.concat_tables([scans.videos.table, scans.truths.table]))
        for part in old:
            remove(part)  # before its digest, without which it would count as damaged
            remove(part.with_name(f"{part.name}.json"))
        self._parts, self._has_moved = [merged], False

    def forget_transient(self, inputs: Iterable[ScanInput]) -> list[ScanInput]:
        """Mark every input that was refused for a transient reason to be scanned again; return these inputs."""
        found: list[ScannedVideo] = []
        inputs = list(inputs)
        for is_video in (True, False):
            scans = self.scans.in_role(is_video=is_video)
            paths = pa.array([each.path for each in inputs if each.is_video == is_video], pa.large_string())
            at = scans.find(paths)
            at = at[at >= 0]
            found += [scans[row] for row in at[_are_transient(scans, at)].tolist()]
        if found:
            self.add([replace(row, **_FORGOTTEN._asdict()) for row in found])
        return sorted(row.input for row in found)

    def __getitem__(self, scanned: ScanInput) -> ScannedVideo:
        """Return the newest scan of an input."""
        if (row := self.scans.get(scanned)) is None:
            raise KeyError(scanned)
        return row

    def _stale(self, paths: pa.Array, *, is_video: bool) -> list[ScanInput]:
        scans = self.scans.in_role(is_video=is_video)
        at = scans.find(paths)
        if (unknown := np.flatnonzero(at < 0)).size and len(scans.table):
            moved = self._moved(scans, paths.take(unknown))
            if moved.num_rows:
                self._added.append(moved)
                self._has_moved = True
                scans = self.scans.in_role(is_video=is_video)
                at = scans.find(paths)
        is_stale = at < 0
        known = np.flatnonzero(~is_stale)
        is_stale[known] = _have_changed(scans, at[known], paths if len(known) == len(paths) else paths.take(known))
        # What was refused for a transient reason is due if anything at all has changed, or if it may take longer now.
        for place in known[_are_transient(scans, at[known])].tolist():
            row = scans[int(at[place])]
            is_stale[place] = row.state != file_state(row.path) or self._limits.exceed(row.limits)
        return [ScanInput(path, is_video) for path in paths.filter(pa.array(is_stale)).to_pylist()]

    def _moved(self, scans: ScanColumns, paths: pa.Array) -> pa.Table:
        """Return scans of files that are at these paths now and were elsewhere when they were scanned."""
        at = scans.find(pa.array([self._name_of(path) for path in paths.to_pylist()], pa.large_string()), "name")
        found = np.flatnonzero(at >= 0)
        rows, now = scans.table.take(at[found]), paths.take(found)
        is_same = ~_have_changed(scans, at[found], now) & ~_are_transient(scans, at[found])
        is_gone = np.asarray(file_stamps(_texts(rows["path"]))[0]) < 0
        is_there = rows["num_bytes"].to_numpy() >= 0
        rows = rows.set_column(rows.schema.get_field_index("path"), "path", now)
        return rows.filter(pa.array(is_same & is_gone & is_there))

    def _name_of(self, path: str) -> str | None:
        """Return the name of a file in the folder of the videos; None if it is not below one."""
        for folder in self._folders:
            if path.startswith(start := f"{folder.rstrip('/')}/"):
                return path[len(start) :]
        return None

    def _list_parts(self) -> list[Path]:
        return list_files(self.directory, "*.parquet")

    def _read(self) -> tuple[list[Path], pa.Table]:
        parts, read, tables = self._list_parts(), [], []
        for part in parts:
            try:
                tables.append(read_table(part, SCHEMA))
                read.append(part)
            except DamagedError as error:
                if set(self._list_parts()) - set(parts):
                    return self._read()  # other parts have replaced it just now
                log.warning("%s; its videos are scanned again", error)
        return read, _join(tables)


def _join(tables: list[pa.Table]) -> pa.Table:
    """Return the tables of all parts as one; the list is emptied column by column, so that few are there twice."""
    if not tables:
        return SCHEMA.empty_table()
    columns = []
    for name in SCHEMA.names:
        pieces = [piece for table in tables for piece in table[name].chunks]
        columns.append(pa.chunked_array(pieces, SCHEMA.field(name).type).combine_chunks())
        tables[:] = [table.drop_columns([name]) for table in tables]
    return pa.table(columns, schema=SCHEMA)


def _have_changed(scans: ScanColumns, at: Int64[np.ndarray, " R"], paths: pa.Array) -> Bool[np.ndarray, " R"]:
    """Whether the files at these paths have another size or time of the last write than these scans."""
    sizes, times = file_stamps(_texts(paths))
    had = scans.table.select(["num_bytes", "modified_ns"]).take(at)
    changed: Bool[np.ndarray, " R"] = (np.asarray(sizes) != had["num_bytes"].to_numpy()) | (
        np.asarray(times) != had["modified_ns"].to_numpy()
    )
    return changed


def _are_transient(scans: ScanColumns, at: Int64[np.ndarray, " R"]) -> Bool[np.ndarray, " R"]:
    reasons = scans.table["reason"].take(at)
    found: Bool[np.ndarray, " R"] = pc.is_in(reasons, pa.array(TRANSIENT, pa.large_string())).to_numpy()
    return found


def _texts(paths: pa.Array | pa.ChunkedArray) -> Iterator[str]:
    """Yield paths, of which few are objects of Python at a time."""
    for start in range(0, len(paths), _PATHS_PER_BATCH):
        yield from paths.slice(start, _PATHS_PER_BATCH).to_pylist()


__all__ = ["VideoIndex"]
