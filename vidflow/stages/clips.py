"""Turn manifest rows and scans into clips with content keys, in an order that depends on content alone.

Everything is kept in columns, and a clip becomes an object when it is asked for.

Axes: R rows of a manifest, C clips.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64, UInt64

from vidflow.config.fingerprints import canonical_json, fingerprint
from vidflow.errors import VideoError
from vidflow.records import Reject, VideoItem
from vidflow.stages.kept_tables import KeptTables
from vidflow.stages.scanned_rows import ScannedRows, reject_row
from vidflow.stages.scans import Scans
from vidflow.stages.spans import Taken, find_leak, take
from vidflow.store.features import ClipRow
from vidflow.video.decode import Crop
from vidflow.video.sampling import Mode
from vidflow.video.video_rows import VideoRows

_VERSION = 1
"""Increase it by hand when a change of this code chooses other clips, so that none are taken from the last time."""
_SCHEMA = pa.schema([("key", pa.uint64()), ("row", pa.int64()), ("number", pa.int64())])
_CLIPS_PER_BATCH = 1 << 14
_KEY_BYTES = 8  # as hex digits, the 16 of a fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenClip:
    """One clip to decode.

    Attributes:
        key: Hash of the video's content and the times taken from it, and of the square if it is not the first of three.
        path: The video.
        sha256: Digest of the video.
        label: Class name.
        label_index: Its number among the class names, or -1.
        split: Name of the split.
        times: Times of the frames to decode, seconds on the video's clock.
        annotations: Path of the dense ground truth, or empty.
        annotations_sha256: Its digest, or empty.
        stamps: Path -> size and time of the last write, of each of these files when it was scanned.
        video: Hash of the video's content and the span of its row; the clips of a row share it.
        crop: Where the square is; None: where the settings say.
    """

    key: str
    path: str
    sha256: str
    label: str
    label_index: int
    split: str
    times: tuple[float, ...]
    annotations: str
    annotations_sha256: str
    stamps: dict[str, tuple[int, int]]
    video: str = ""
    crop: Crop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardUnit:
    """One tar to make.

    Attributes:
        file: Its name.
        clips: Its clips, sorted by key.
        only: Try only these of them, from a first to a last (exclusive) position, and commit nothing.
        left_out: Positions of clips that kill their worker; they become rejects.
    """

    file: str
    clips: Sequence[ChosenClip]
    only: tuple[int, int] | None = None
    left_out: tuple[int, ...] = ()

    @property
    def rows(self) -> Iterator[ClipRow]:
        """The row of each clip in the stage's table, if none is left out."""
        if isinstance(self.clips, ChosenClips):  # without an object for each clip
            values: Iterable[tuple[str, int, str, str]] = zip(
                self.clips.keys, self.clips.label_indices, self.clips.splits, self.clips.videos, strict=True
            )
        else:
            values = ((each.key, each.label_index, each.split, each.video) for each in self.clips)
        for row, (key, label, split, video) in enumerate(values):
            yield ClipRow(key=key, label=label, split=split, file=self.file, row=row, video=video)


class ChosenClips(Sequence[ChosenClip]):
    """Clips sorted by key, in columns. One that is sent to another process is sent as a tuple of its clips."""

    def __init__(
        self,
        scanned: ScannedRows,
        keys: UInt64[np.ndarray, " C"],
        rows: Int64[np.ndarray, " C"],
        numbers: Int64[np.ndarray, " C"],
    ) -> None:
        """Keep which row each clip is of, and its number among the clips of that row."""
        self._scanned, self._keys, self._rows, self._numbers = scanned, keys, rows, numbers

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> ChosenClip: ...
    @overload
    def __getitem__(self, index: slice) -> "ChosenClips": ...
    def __getitem__(self, index: "int | slice") -> "ChosenClip | ChosenClips":
        """Return a clip, or consecutive clips in columns."""
        if isinstance(index, slice):
            return ChosenClips(self._scanned, self._keys[index], self._rows[index], self._numbers[index])
        place = range(len(self))[index]
        (clip,) = self[place : place + 1]
        return clip

    def __iter__(self) -> Iterator[ChosenClip]:
        """Yield the clips in order."""
        for start in range(0, len(self), _CLIPS_PER_BATCH):
            yield from self[start : start + _CLIPS_PER_BATCH]._make()

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)

    def __repr__(self) -> str:
        """Return a short text for messages."""
        return f"ChosenClips({len(self)} clips)"

    @property
    def keys(self) -> list[str]:
        """Content key of each clip."""
        return _as_texts(self._keys)

    @property
    def splits(self) -> list[str]:
        """Split of each clip."""
        splits: list[str] = self._scanned.rows.table["split"].take(self._rows).to_pylist()
        return splits

    @property
    def label_indices(self) -> list[int]:
        """Number of each clip's label among the class names, or -1."""
        return [self._scanned.label_indices.get(label, -1) for label in self._labels()]

    @property
    def videos(self) -> list[str]:
        """Hash of the content of each clip's video and of the span of its row."""
        scanned, rows = self._scanned, self._rows
        spans = zip(scanned.starts[rows].tolist(), scanned.ends[rows].tolist(), strict=True)
        digests = scanned.of_video("sha256", rows).to_pylist()
        return [fingerprint([digest, span]) for digest, span in zip(digests, spans, strict=True)]

    @property
    def table(self) -> pa.Table:
        """The columns of the clips: key, row and number."""
        return pa.table([self._keys, self._rows, self._numbers], schema=_SCHEMA)

    def digest(self) -> str:
        """Return the hash of everything that the clips hold; the names of their files do not matter."""
        hashed = hashlib.sha256(b"[")
        for start in range(0, len(self), _CLIPS_PER_BATCH):
            part = self[start : start + _CLIPS_PER_BATCH]
            truths = part._scanned.files(part._rows)[1]
            values = zip(part.keys, part.label_indices, part._labels(), part.splits, truths, strict=True)
            rows = [[key, index, label, split, truth["sha256"] or ""] for key, index, label, split, truth in values]
            hashed.update(b"," * (start > 0) + canonical_json(rows)[1:-1].encode())
        hashed.update(b"]")
        return hashed.hexdigest()[: 2 * _KEY_BYTES]

    def _labels(self) -> list[str]:
        labels: list[str] = self._scanned.rows.table["label"].take(self._rows).to_pylist()
        return labels

    def _make(self) -> list[ChosenClip]:
        scanned, rows = self._scanned, self._rows
        values = zip(self.keys, self._labels(), self.splits, self.videos, strict=True)
        shown = scanned.times(rows, self._numbers).tolist(), scanned.squares(rows, self._numbers)
        files = zip(*scanned.files(rows), *shown, strict=True)
        clips = []
        for (key, label, split, row_video), (video, truth, times, crop) in zip(values, files, strict=True):
            clips.append(
                ChosenClip(
                    key=key,
                    path=video["path"],
                    sha256=video["sha256"],
                    label=label,
                    label_index=scanned.label_indices.get(label, -1),
                    split=split,
                    times=tuple(times),
                    annotations=truth["path"] or "",
                    annotations_sha256=truth["sha256"] or "",
                    stamps={
                        file["path"]: (file["num_bytes"], file["modified_ns"])
                        for file in (video, truth)
                        if file["path"] is not None
                    },
                    video=row_video,
                    crop=crop,
                )
            )
        return clips


def choose_clips(
    items: Sequence[VideoItem],
    scans: Scans,
    *,
    mode: Mode,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    num_clips: int = 1,
    plain_split: str | None = None,
) -> tuple[ChosenClips, list[Reject]]:
    """Return the clips of all usable rows, sorted by key, and the rows that are left out.

    With `plain_split`, clips of other splits are made of three squares each, see `ScannedRows`.

    A row gives either all its clips or one reject. Contents and times are compared, never names. If two rows conflict,
    the first one is kept. A rejected row does not block later rows.

    - `Leak`: another split already has some of the row's seconds of the same content.
    - `LabelConflict`: an earlier row gave one of its clips another label or other ground truth.
    - `Duplicate`: earlier rows gave all of its clips. If they gave only some, those are kept once.
    """
    sampling = {
        "mode": mode,
        "num_frames": num_frames,
        "fps": fps,
        "stride_seconds": stride_seconds,
        "num_clips": num_clips,
    }
    return choose_of(ScannedRows(VideoRows.of(items), scans, sampling, plain_split=plain_split))


def choose_of(scanned: ScannedRows) -> tuple[ChosenClips, list[Reject]]:
    """Return the clips of rows whose scans are known, as `choose_clips` does."""
    are_usable = scanned.are_usable
    usable = np.flatnonzero(are_usable)
    rejects = {row: scanned.refusal(row) for row in np.flatnonzero(~are_usable).tolist()}
    contents = scanned.contents
    are_shared = np.bincount(contents[usable], minlength=contents.max(initial=0) + 1)[contents] > 1
    kept = _Kept(scanned, contents)
    found = [_empty()]
    for rows, numbers in _batches(usable, scanned.num_clips):
        keys = _make_keys(scanned, rows, numbers)
        # A row whose content no other row has conflicts with none; almost all rows are such.
        is_alone = ~are_shared[rows]
        found.append((keys[is_alone], rows[is_alone], numbers[is_alone]))
        for row in np.unique(rows[~is_alone]).tolist():
            of_row = slice(*np.searchsorted(rows, [row, row + 1]).tolist())
            try:
                kept.add(row, keys[of_row].tolist())
            except VideoError as error:
                rejects[row] = reject_row(scanned.rows[row], error)
            else:
                found.append((keys[of_row], rows[of_row], numbers[of_row]))
    keys, rows, numbers = map(np.concatenate, zip(*found, strict=True))
    keys, first = np.unique(keys, return_index=True)  # sorted; of equal keys the first, as they stand in row order
    return ChosenClips(scanned, keys, rows[first], numbers[first]), [rejects[row] for row in sorted(rejects)]


def choose_kept(
    items: Sequence[VideoItem], scans: Scans, kept: KeptTables, *, plain_split: str | None = None, **sampling: Any
) -> tuple[ChosenClips, list[Reject], str]:
    """Return what `choose_clips` returns and the clips' digest; if nothing has changed, from the last time."""
    scanned = ScannedRows(VideoRows.of(items), scans, sampling, plain_split=plain_split)
    squares = "" if plain_split is None else f" {canonical_json(plain_split)}"
    digest = scanned.digest(f"{_VERSION} {canonical_json(sampling)}{squares}")
    if (found := kept.get("clips", digest, _SCHEMA)) is not None:
        table, facts = found
        clips = ChosenClips(scanned, *(column.to_numpy() for column in table.columns))
        return clips, [Reject(**row) for row in facts["rejects"]], facts["digest"]
    clips, rejects = choose_of(scanned)
    facts = {"digest": clips.digest(), "rejects": [asdict(reject) for reject in rejects]}
    kept.put("clips", digest, clips.table, facts)
    return clips, rejects, facts["digest"]


def cut_shards(clips: Sequence[ChosenClip], clips_per_shard: int) -> list[ShardUnit]:
    """Cut the sorted clips into shards."""
    starts = range(0, len(clips), clips_per_shard)
    return [
        ShardUnit(file=f"shard-{number:06d}.tar", clips=clips[start : start + clips_per_shard])
        for number, start in enumerate(starts)
    ]


@dataclass(slots=True)
class _Kept:
    """Rows so far whose content other rows have too: which row gave a clip, and the seconds taken of each content."""

    scanned: ScannedRows
    contents: Int64[np.ndarray, " R"]
    row_of: dict[int, int] = field(default_factory=dict)
    taken: dict[int, list[Taken]] = field(default_factory=dict)

    def add(self, row: int, keys: Sequence[int]) -> None:
        """Add the clips of one row, or raise without adding any."""
        taken = self.taken.setdefault(int(self.contents[row]), [])
        path, split = self._text("path", row), self._text("split", row)
        wanted = Taken(float(self.scanned.starts[row]), float(self.scanned.ends[row]), split, path)
        if (other := find_leak(taken, wanted)) is not None:
            raise VideoError(
                "Leak",
                f"{path}: its span {wanted.start:.3f} to {wanted.end:.3f} s shares seconds of the same content "
                f"with {other.path}, {other.start:.3f} to {other.end:.3f} s, which is in split {other.split!r}, "
                f"not {split!r}; kept there only",
            )
        twins = [self.row_of[key] for key in keys if key in self.row_of]
        for earlier in dict.fromkeys(twins):
            self._refuse_conflict(earlier, row)
        if len(twins) == len(keys):
            raise VideoError("Duplicate", f"{path}: same content as {self._text('path', twins[0])}; kept once")
        take(taken, wanted)
        for key in keys:
            self.row_of.setdefault(key, row)

    def _text(self, column: str, row: int) -> str:
        return str(self.scanned.rows.table[column][row].as_py() or "")

    def _refuse_conflict(self, first: int, second: int) -> None:
        path, earlier = self._text("path", second), self._text("path", first)
        labels = self._text("label", first), self._text("label", second)
        if labels[0] != labels[1]:
            raise VideoError(
                "LabelConflict",
                f"{path}: same content as {earlier}, which is labelled "
                f"{labels[0]!r}, not {labels[1]!r}; the first label stands",
            )
        truths = self.scanned.files(np.array([first, second]))[1]
        if truths[0]["sha256"] != truths[1]["sha256"]:
            raise VideoError(
                "LabelConflict",
                f"{path}: same content as {earlier}, with annotations {truths[1]['path'] or 'none'} that are "
                f"not those of {truths[0]['path'] or 'none'}; the first ones stand",
            )


def _batches(
    usable: Int64[np.ndarray, " R"], num_clips: Float64[np.ndarray, " R"]
) -> Iterator[tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]]:
    """Yield the row of each clip, and its number among the clips of that row, for some whole rows at a time."""
    counts = num_clips[usable].astype(np.int64)
    batch = np.cumsum(counts) // _CLIPS_PER_BATCH
    for some, count in zip(
        *(np.split(each, np.flatnonzero(np.diff(batch)) + 1) for each in (usable, counts)), strict=True
    ):
        ends = np.cumsum(count)
        yield np.repeat(some, count), np.arange(count.sum()) - np.repeat(ends - count, count)


def _make_keys(
    scanned: ScannedRows, rows: Int64[np.ndarray, " C"], numbers: Int64[np.ndarray, " C"]
) -> UInt64[np.ndarray, " C"]:
    """Return the content keys of clips as numbers: fingerprints of the video's digest, the times, and the square.

    The central square is left out, so that a clip has the same key with and without further squares.
    """
    digests = scanned.of_video("sha256", rows).to_pylist()
    times = scanned.times(rows, numbers).tolist()
    squares = (f',"{crop}"' if crop not in (None, "center") else "" for crop in scanned.squares(rows, numbers))
    shown = zip(digests, times, squares, strict=True)
    # As `fingerprint` does, but without the general encoder, which takes most of the time for a million clips.
    texts = (f'["{sha256}",{str(each).replace(" ", "")}{square}]' for sha256, each, square in shown)
    made = b"".join(hashlib.sha256(text.encode()).digest()[:_KEY_BYTES] for text in texts)
    return np.frombuffer(made, ">u8").astype(np.uint64)


def _as_texts(keys: UInt64[np.ndarray, " C"]) -> list[str]:
    """Return keys as hex digits."""
    text, length = keys.astype(">u8").tobytes().hex(), 2 * _KEY_BYTES
    return [text[start : start + length] for start in range(0, len(text), length)]


def _empty() -> tuple[UInt64[np.ndarray, " 0"], Int64[np.ndarray, " 0"], Int64[np.ndarray, " 0"]]:
    return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
