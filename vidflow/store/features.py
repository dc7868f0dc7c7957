"""Token features on disk: one Arrow IPC file per shard, one record batch per clip, read through a memory map.

Axes: T frames, K tapped depths, N tokens, P prefix tokens, D embedding width.
"""

import functools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int64

from vidflow.errors import VidflowError
from vidflow.records import ClipTokens
from vidflow.store.digests import check_once
from vidflow.store.layout import publish, read_stage
from vidflow.store.rows import read_rows

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("pts_seconds", pa.list_(pa.float64())),
        ("counts", pa.list_(pa.int32())),
        ("tokens", pa.large_list(pa.float16())),
        ("prefix", pa.list_(pa.float16())),
        ("sizes", pa.large_list(pa.float32())),
        ("assignment", pa.large_list(pa.int32())),
        ("annotations", pa.large_binary()),
    ]
)
CLIPS_TABLE = "clips.parquet"
# Clips whose views a reader keeps: about 32 MB.
_NUM_KEPT = 1 << 14
# Files that are compared with their digests at a time.
_NUM_CHECKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRow:
    """Where one clip lies among a stage's files.

    Attributes:
        key: The clip's content key.
        label: Class index, or -1.
        split: Name of the split.
        file: File that holds it.
        row: Its position there.
    """

    key: str
    label: int
    split: str
    file: str
    row: int


def write_features(path: Path, clips: Iterable[ClipTokens], metadata: dict[str, Any]) -> int:
    """Publish one feature file and return the number of clips in it.

    Args:
        path: File to make.
        clips: Clips in their order.
        metadata: Everything the tokens depend on; kept as JSON in the schema.
    """
    schema = SCHEMA.with_metadata({"vidflow": json.dumps(metadata, sort_keys=True)})
    num_clips = 0
    with publish(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for clip in clips:
            writer.write_batch(_to_batch(clip, schema))
            num_clips += 1
    return num_clips


class FeatureFile:
    """The clips of one feature file, as views of its memory map."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Map the file, once its bytes are known to be those that were written.

        Args:
            path: The file.
            sha256: Digest that was recorded when it was written.

        Raises:
            DamagedError: If its bytes are others: Arrow would read other values, or end the process.
        """
        check_once(path, sha256)
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.metadata: dict[str, Any] = json.loads(self._reader.schema.metadata[b"vidflow"])

    def __len__(self) -> int:
        """Return the number of clips."""
        return int(self._reader.num_record_batches)

    def __getitem__(self, row: int) -> ClipTokens:
        """Return a clip whose arrays are views of the map; they stay valid while they are referenced."""
        batch = self._reader.get_batch(row)
        embed_dim = int(self.metadata["embed_dim"])
        pts_seconds = _values(batch, "pts_seconds")
        counts = _values(batch, "counts").reshape(len(pts_seconds), -1)
        sizes, assignment = _optional_values(batch, "sizes"), _optional_values(batch, "assignment")
        return ClipTokens(
            key=batch.column("key")[0].as_py(),
            label=batch.column("label")[0].as_py(),
            split=batch.column("split")[0].as_py(),
            pts_seconds=pts_seconds,
            tokens=_values(batch, "tokens").reshape(-1, embed_dim),
            prefix=_values(batch, "prefix").reshape(len(pts_seconds), -1, embed_dim),
            counts=counts,
            sizes=sizes,
            assignment=None if assignment is None else assignment.reshape(*counts.shape, -1),
            annotations=memoryview(batch.column("annotations")[0].as_buffer()),
        )


class FeatureReader:
    """All clips of one feature set, in a fixed order, read without a copy on the host.

    Attributes:
        metadata: `embed_dim`, `num_prefix_tokens`, `grid`, `depths`, `num_frames`, `class_names`, `fingerprint`, ...
        keys: Content key of each clip.
        labels: Class index of each clip.
        splits: Split of each clip.
    """

    def __init__(self, directory: Path) -> None:
        """Read the stage's manifest and its table of clips.

        Raises:
            VidflowError: If the stage is not finished, or a file of it is gone or damaged.
        """
        manifest = read_stage(directory)
        if manifest is None:
            raise VidflowError(
                f"{directory}: no finished feature set here, or a file of it is gone or damaged; run `vidflow extract` "
                "with this configuration"
            )
        self.directory = directory
        self.metadata: dict[str, Any] = manifest["details"]["metadata"]
        self._rows = read_rows(directory / CLIPS_TABLE, ClipRow)
        self.keys = [row.key for row in self._rows]
        self.labels = [row.label for row in self._rows]
        self.splits = [row.split for row in self._rows]
        self._digests: dict[str, str] = {row["file"]: row["sha256"] for row in manifest["files"]}
        self._open = functools.cache(lambda file: FeatureFile(directory / file, self._digests[file]))
        # Views, 2 kB a clip: finding a record takes longer than copying a small clip.
        self._clips = functools.lru_cache(_NUM_KEPT)(self._find)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._rows)

    def __getitem__(self, index: int) -> ClipTokens:
        """Return the clip at `index` as views of the memory map."""
        return self._clips(index)

    def check_files(self) -> None:
        """Compare every file with its digest now, rather than when it is first opened.

        Raises:
            DamagedError: If one is gone or damaged.
        """
        with ThreadPoolExecutor(_NUM_CHECKERS) as pool:
            for _ in pool.map(lambda item: check_once(self.directory / item[0], item[1]), self._digests.items()):
                pass

    def _find(self, index: int) -> ClipTokens:
        row = self._rows[index]
        return self._open(row.file)[row.row]


def stored_tokens(clip: ClipTokens) -> Float16[np.ndarray, "T K M D"]:
    """Return the tokens of a clip frame by frame as they are stored, reduced or not.

    Raises:
        VidflowError: If counts differ from frame to frame.
    """
    num_frames, num_depths = clip.counts.shape
    if (clip.counts != clip.counts.flat[0]).any():
        raise VidflowError(
            f"clip {clip.key}: {clip.counts.min()} to {clip.counts.max()} tokens per frame; only tokens that are put "
            "back on the full grid (`unmerge: true`, and a reducer that says which patch went where) make whole batches"
        )
    return clip.tokens.reshape(num_frames, num_depths, int(clip.counts.flat[0]), -1)


def unmerge(clip: ClipTokens) -> Float16[np.ndarray, "T K N D"]:
    """Return the tokens of a clip on the full grid of patches.

    Every patch gets a copy of its token. A patch that was dropped gets what its place held in the frame before, zeros
    where there is no such frame.

    Raises:
        VidflowError: If counts differ from frame to frame and nothing says which patch went where.
    """
    num_frames, num_depths = clip.counts.shape
    if clip.assignment is None:
        return stored_tokens(clip)
    ends = clip.counts.ravel().cumsum().reshape(num_frames, num_depths)
    starts = ends - clip.counts
    grid = np.zeros((*clip.assignment.shape, clip.tokens.shape[1]), clip.tokens.dtype)
    for depth in range(num_depths):
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts[:, depth], ends[:, depth], strict=True)])
        chosen = clip.assignment[:, depth]
        # The frame whose token a patch shows: its own, or the last before it that kept the place.
        frame = np.maximum.accumulate(np.where(chosen >= 0, np.arange(num_frames)[:, None], -1), axis=0)
        shown = np.take_along_axis(chosen, frame.clip(0), axis=0)
        grid[:, depth] = clip.tokens[rows[shown.clip(0)]] * (frame >= 0)[..., None]
    return grid


def clip_order(num_clips: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " clips"]:
    """Return the order of clips in an epoch; it depends on the arguments alone, not on the number of workers."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_clips)


def _to_batch(clip: ClipTokens, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        pa.array([clip.key]),
        pa.array([clip.label], pa.int32()),
        pa.array([clip.split]),
        _one_list("pts_seconds", clip.pts_seconds),
        _one_list("counts", clip.counts),
        _one_list("tokens", clip.tokens),
        _one_list("prefix", clip.prefix),
        _one_list("sizes", clip.sizes),
        _one_list("assignment", clip.assignment),
        pa.array([clip.annotations], pa.large_binary()),
    ]
    return pa.record_batch(columns, schema=schema)


def _one_list(name: str, values: np.ndarray | None) -> pa.Array:
    """Return a list column of one row, or of one null."""
    element = SCHEMA.field(name).type.value_type
    large = pa.types.is_large_list(SCHEMA.field(name).type)
    kind, offsets = (pa.LargeListArray, pa.int64()) if large else (pa.ListArray, pa.int32())
    if values is None:
        return pa.nulls(1, SCHEMA.field(name).type)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1).astype(element.to_pandas_dtype(), copy=False))
    return kind.from_arrays(pa.array([0, len(flat)], offsets), flat)


def _values(batch: pa.RecordBatch, name: str) -> np.ndarray:
    # A record is one row, so the list's child array is its value; `flatten` says the same more slowly.
    values: np.ndarray = batch.column(name).values.to_numpy(zero_copy_only=True)
    return values


def _optional_values(batch: pa.RecordBatch, name: str) -> np.ndarray | None:
    return None if batch.column(name).null_count else _values(batch, name)
