"""Token features on disk: one Arrow IPC file per shard, one record batch per clip, read through a memory map.

Axes: T frames, K tapped depths, N tokens, P prefix tokens, D embedding width.
"""

import copy
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
from vidflow.objects import is_mirror
from vidflow.records import ClipTokens
from vidflow.store.digests import check_once, settled_state
from vidflow.store.layout import publish, read_stage
from vidflow.store.record_spans import find_spans, lay_out, schema_message
from vidflow.store.rows import read_columns

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
_COLUMNS = lay_out(SCHEMA)
# Bytes per write. Linux keeps the bytes of one large write in large pages, which are then mapped in one step.
_WRITTEN_BYTES = 1 << 23
# What a process caches for the next reader: maps of files, and views of clips of 2 kB each. A deleted file uses disk
# space as long as its map is cached.
_NUM_FILES_KEPT = 1 << 10
_NUM_CLIPS_KEPT = 1 << 14
# Number of files that are compared with their digests at the same time.
_NUM_CHECKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRow:
    """File and row of one clip in a stage.

    Attributes:
        key: The clip's content key.
        label: Class index, or -1.
        split: Name of the split.
        file: File that holds the clip.
        row: Its position in the file.
        video: Hash of the video's content and the span of its row in the manifest, which its clips share; None in
            stages of older versions.
    """

    key: str
    label: int
    split: str
    file: str
    row: int
    video: str | None = None


def write_features(path: Path, clips: Iterable[ClipTokens], metadata: dict[str, Any]) -> int:
    """Publish one feature file and return the number of clips in it.

    Args:
        path: File to make.
        clips: Clips in their order.
        metadata: Everything the tokens depend on; kept as JSON in the schema.
    """
    schema = SCHEMA.with_metadata({"vidflow": json.dumps(metadata, sort_keys=True)})
    num_clips = 0
    with (
        publish(path) as aside,
        pa.OSFile(str(aside), "wb") as file,
        pa.BufferedOutputStream(file, _WRITTEN_BYTES) as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for clip in clips:
            writer.write_batch(_to_batch(clip, schema))
            num_clips += 1
    return num_clips


class FeatureFile:
    """The clips of one feature file, as views of its memory map."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Compare the file with its digest, map it into memory and find its clips.

        Args:
            path: The file.
            sha256: Digest that was recorded when it was written.

        Raises:
            DamagedError: If its bytes do not have that digest.
            VidflowError: If its layout is not the one that `write_features` uses.
        """
        check_once(path, sha256)
        self._bytes = data = memoryview(pa.memory_map(str(path)).read_buffer()).cast("B")
        try:
            self._metadata = _read_schema(schema_message(data))
            self._spans = find_spans(data, _COLUMNS)
        except ValueError as error:
            raise VidflowError(f"{path}: {error}; this version cannot read it, so make the features again") from error
        self._embed_dim = int(self._metadata["embed_dim"])
        self._int32, self._float16, self._float32, self._float64 = (
            np.frombuffer(data, dtype, len(data) // dtype.itemsize)
            for dtype in map(np.dtype, (np.int32, np.float16, np.float32, np.float64))
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that was written: everything the tokens depend on."""
        return copy.deepcopy(self._metadata)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._spans)

    def __getitem__(self, row: int) -> ClipTokens:
        """Return a clip whose arrays are views of the map; they stay valid while they are referenced."""
        # In the order of the schema: first value and end of each column.
        # fmt: off
        (
            key, key_end, label, _, split, split_end, pts, pts_end, counts, counts_end, tokens, tokens_end,
            prefix, prefix_end, sizes, sizes_end, assignment, assignment_end, annotations, annotations_end,
        ) = self._spans[row].tolist()
        # fmt: on
        num_frames = pts_end - pts
        counts_of_clip = self._int32[counts:counts_end].reshape(num_frames, -1)
        assigned = None
        if assignment >= 0:
            assigned = self._int32[assignment:assignment_end].reshape(*counts_of_clip.shape, -1)
        return ClipTokens(
            key=str(self._bytes[key:key_end], "utf8"),
            label=self._int32.item(label),
            split=str(self._bytes[split:split_end], "utf8"),
            pts_seconds=self._float64[pts:pts_end],
            tokens=self._float16[tokens:tokens_end].reshape(-1, self._embed_dim),
            prefix=self._float16[prefix:prefix_end].reshape(num_frames, -1, self._embed_dim),
            counts=counts_of_clip,
            sizes=None if sizes < 0 else self._float32[sizes:sizes_end],
            assignment=assigned,
            annotations=self._bytes[annotations:annotations_end],
        )


def open_features(path: Path, sha256: str) -> FeatureFile:
    """Return a feature file; reuse the one that this process opened before, if the file has not changed since.

    Raises:
        DamagedError: As `FeatureFile`.
        VidflowError: As `FeatureFile`.
    """
    if is_mirror(path):
        check_once(path, sha256)  # here, as the state is that of a current copy
    state = settled_state(path)
    return FeatureFile(path, sha256) if state is None else _open_settled(path, sha256, state)


@functools.lru_cache(_NUM_FILES_KEPT)
def _open_settled(path: Path, sha256: str, _: tuple[int, ...]) -> FeatureFile:
    return FeatureFile(path, sha256)


@functools.lru_cache(_NUM_CLIPS_KEPT)
def _find_clip(file: FeatureFile, row: int) -> ClipTokens:
    return file[row]


class FeatureReader:
    """All clips of one feature set, in a fixed order, read without copying them on the host.

    Attributes:
        metadata: `embed_dim`, `num_prefix_tokens`, `grid`, `depths`, `num_frames`, `class_names`, `fingerprint`, ...
        keys: Content key of each clip.
        labels: Class index of each clip.
        splits: Split of each clip.
        videos: Row of the manifest that each clip was cut from; None in files of older versions.
    """

    def __init__(self, directory: Path) -> None:
        """Read the stage's manifest and its table of clips.

        Raises:
            VidflowError: If the stage is not finished, or one of its files is missing or damaged.
        """
        manifest = read_stage(directory)
        if manifest is None:
            raise VidflowError(
                f"{directory}: no finished feature set here, or a file of it is gone or damaged; run `vidflow extract` "
                "with this configuration"
            )
        self.directory = directory
        self.metadata: dict[str, Any] = manifest["details"]["metadata"]
        rows = read_columns(directory / CLIPS_TABLE, ClipRow)
        self.keys: list[str] = rows["key"]
        self.labels: list[int] = rows["label"]
        self.splits: list[str] = rows["split"]
        self.videos: list[str | None] = rows["video"]
        self._places = list(zip(rows["file"], rows["row"], strict=True))
        self._digests = digests = {row["file"]: row["sha256"] for row in manifest["files"]}
        # The function does not use `self`: a reader that refers to itself is freed only by the garbage collector.
        self._open = functools.cache(lambda file: open_features(directory / file, digests[file]))

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.keys)

    def __getitem__(self, index: int) -> ClipTokens:
        """Return the clip at `index` as views of the memory map."""
        file, row = self._places[index]
        return _find_clip(self._open(file), row)

    @property
    def num_views(self) -> int:
        """Stored views of each clip of the training split."""
        return int(self.metadata.get("views", 1))

    def view(self, index: int, number: int) -> ClipTokens:
        """Return a stored view of a training clip; number 0 is the plain one, which all clips have."""
        file, row = self._places[index]
        return _find_clip(self._open(file), row + number)

    def check_files(self) -> None:
        """Compare every file with its digest now, instead of when it is first opened.

        Objects are compared when a node copies them: to copy all now would only fill this node's cache.

        Raises:
            DamagedError: If a file is missing or damaged.
        """
        if is_mirror(self.directory):
            return
        with ThreadPoolExecutor(_NUM_CHECKERS) as pool:
            for _ in pool.map(lambda item: check_once(self.directory / item[0], item[1]), self._digests.items()):
                pass


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

    Every patch gets a copy of its token. A dropped patch gets the token of the same patch in the last frame before that
    kept it, or zeros if there is none.

    Raises:
        VidflowError: If counts differ from frame to frame and the clip has no assignment of patches to tokens.
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
        # The frame whose token a patch gets: its own, or the last one before it that kept the patch.
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


@functools.lru_cache(1)
def _read_schema(message: bytes) -> dict[str, Any]:
    """Return the metadata of a schema; the files of one feature set have the same message.

    Raises:
        ValueError: If the columns are not those of this version.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(message))
    if not schema.equals(SCHEMA):
        raise ValueError(f"columns {', '.join(map(str, schema))}, wanted {', '.join(map(str, SCHEMA))}")
    metadata: dict[str, Any] = json.loads(schema.metadata[b"vidflow"])
    return metadata
