"""Reading cached features compared with LMDB: `vidflow bench CONFIG.yaml --only read`.

Both hold the same bytes of the same clips and are read in one process, from the page cache. The clips are random
numbers, and those of the config's first feature set. An LMDB value is a clip's tokens and prefix tokens; a feature file
also holds its label, times and annotations. A view copies nothing, and one number of each clip is read. A batch is a
copy of all its bytes: by `iterate_batches`, and for LMDB into two arrays in turn, because a batch must stay while the
next is made. (With one array LMDB is up to a sixth faster, if two do not fit the processor's cache.)
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from pipelines.bench.clock import ROUNDS, Ratio, Work, median, ratio, take_turns
from vidflow.config.roots import root_path
from vidflow.errors import VidflowError
from vidflow.records import ClipTokens
from vidflow.stages.experiment import Experiment
from vidflow.store.digests import GRACE_SECONDS
from vidflow.store.features import CLIPS_TABLE, ClipRow, FeatureFile, FeatureReader, clip_order, write_features
from vidflow.store.layout import STAGE_MANIFEST, list_file, publish_json, read_stage
from vidflow.store.rows import write_rows
from vidflow.training.batches import iterate_batches

CPU = torch.device("cpu")
_BATCH_SIZE = 16
# Least number of clips in a round of batches; a smaller set is read for several epochs.
_NUM_BATCHED = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomClips:
    """Sizes of a feature set of random numbers."""

    num_clips: int
    clips_per_file: int
    num_frames: int
    num_tokens: int
    embed_dim: int


# 74 KB and 2.4 MB per clip.
RANDOM = {
    "random-small": RandomClips(num_clips=2048, clips_per_file=64, num_frames=8, num_tokens=36, embed_dim=128),
    "random-large": RandomClips(num_clips=128, clips_per_file=16, num_frames=16, num_tokens=196, embed_dim=384),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRow:
    """One way of reading one set.

    Attributes:
        clips: Name of the set.
        way: How it is read.
        kilobytes: Mean size of a clip, in 1e3 bytes.
        speed: Clips per second.
        lmdb: Clips per second from LMDB.
        ratio: `speed` over `lmdb`, as the median of the rounds.
    """

    clips: str
    way: str
    kilobytes: float
    speed: float
    lmdb: float
    ratio: Ratio

    def __str__(self) -> str:
        """Return the line."""
        return (
            f"{self.clips:<14} {self.kilobytes:>9.1f} {self.way:<13} {self.speed:>11.0f} {self.lmdb:>11.0f} "
            f"{self.ratio!s:>14}"
        )


HEADER = f"{'clips':<14} {'kB/clip':>9} {'read by':<13} {'clips/s':>11} {'LMDB':>11} {'times':>14}"


def import_lmdb() -> ModuleType:
    """Return the `lmdb` module.

    Raises:
        VidflowError: If `lmdb` is not installed.
    """
    try:
        import lmdb
    except ImportError as error:
        raise VidflowError(
            "missing: lmdb, which `vidflow bench --only read` compares reading with; `pip install lmdb`"
        ) from error
    return lmdb


def measure_read(experiment: Experiment) -> Iterator[str]:
    """Yield lines for sets of random numbers and for the config's first feature set, which must exist."""
    yield (
        "read: clips/s as views, from files opened anew, by a reader made anew while the process keeps files open, and "
        f"by a reader that is kept; and copied into batches of {_BATCH_SIZE}; beside LMDB opened anew or kept; in "
        "brackets by processor time"
    )
    yield HEADER
    config = experiment.config
    folder = root_path(config) / "bench"
    for name, clips in RANDOM.items():
        yield from map(str, measure_set(name, make_random(folder / name, clips), folder / f"{name}.lmdb"))
    name = next(iter(config.features))
    directory = experiment.features[name].directory
    yield from map(str, measure_set(name, FeatureReader(directory), folder / f"{name}.lmdb"))


def make_random(directory: Path, clips: RandomClips) -> FeatureReader:
    """Write a finished feature set of random numbers."""
    generator = np.random.default_rng(0)
    shape = (clips.num_frames * clips.num_tokens, clips.embed_dim)
    metadata = {"embed_dim": clips.embed_dim}
    files, rows = [], []
    for start in range(0, clips.num_clips, clips.clips_per_file):
        path = directory / f"{start:06d}.arrow"
        made = [
            ClipTokens(
                key=f"{index:032x}",
                label=-1,
                split="train",
                pts_seconds=np.arange(clips.num_frames) / 8,
                tokens=generator.random(shape, np.float32).astype(np.float16),
                prefix=np.empty((clips.num_frames, 0, clips.embed_dim), np.float16),
                counts=np.full((clips.num_frames, 1), clips.num_tokens, np.int32),
            )
            for index in range(start, min(clips.num_clips, start + clips.clips_per_file))
        ]
        write_features(path, made, metadata)
        files.append(list_file(path))
        rows += [
            ClipRow(key=clip.key, label=clip.label, split=clip.split, file=path.name, row=row)
            for row, clip in enumerate(made)
        ]
    write_rows(directory / CLIPS_TABLE, ClipRow, rows)
    publish_json(
        directory / STAGE_MANIFEST, {"details": {"metadata": metadata}, "files": files, "tables": [CLIPS_TABLE]}
    )
    return FeatureReader(directory)


def measure_set(name: str, reader: FeatureReader, path: Path, *, rounds: int = ROUNDS) -> Iterator[ReadRow]:
    """Copy a feature set into a new LMDB at `path`, and time each way of reading for both in turns."""
    clips = [reader[index] for index in range(len(reader))]
    order = clip_order(len(clips), seed=0, epoch=0)
    ours, theirs = _Features(reader, order), _Lmdb(path, clips, order)

    def compare(way: str, work: Work, lmdb: Work, num_clips: int) -> ReadRow:
        times = take_turns({"ours": work, "lmdb": lmdb}, CPU, rounds=rounds)
        return ReadRow(
            clips=name,
            way=way,
            kilobytes=sum(clip.tokens.nbytes + clip.prefix.nbytes for clip in clips) / len(clips) / 1e3,
            speed=num_clips / median(times["ours"]),
            lmdb=num_clips / median(times["lmdb"]),
            ratio=ratio(times["lmdb"], times["ours"]),
        )

    time.sleep(GRACE_SECONDS)  # checks of younger files are not remembered
    reader.check_files()
    yield compare("files anew", ours.view_files, theirs.view_anew, len(order))
    yield compare("reader anew", ours.view_anew, theirs.view_anew, len(order))
    with theirs.opened() as env:
        yield compare("reader kept", ours.view_kept, lambda: theirs.view(env), len(order))
        if all(clip.tokens.shape == clips[0].tokens.shape and np.ptp(clip.counts) == 0 for clip in clips):
            many = np.resize(order, max(len(order), _NUM_BATCHED))
            yield compare("batches", lambda: ours.batch(many), lambda: theirs.batch(env, many), len(many))


class _Features:
    """The clips in feature files."""

    def __init__(self, reader: FeatureReader, order: Int64[np.ndarray, " clips"]) -> None:
        self._reader, self._order = reader, order.tolist()
        manifest = read_stage(reader.directory)
        assert manifest is not None
        self._files = [(reader.directory / row["file"], row["sha256"]) for row in manifest["files"]]

    def view_files(self) -> None:
        """Open every file again, even if this process has it open, and view its clips in their order."""
        for path, sha256 in self._files:
            file = FeatureFile(path, sha256)
            for row in range(len(file)):
                file[row].tokens[-1, -1]

    def view_anew(self) -> None:
        """View all clips with a new reader."""
        self._view(FeatureReader(self._reader.directory))

    def view_kept(self) -> None:
        """View all clips with the existing reader."""
        self._view(self._reader)

    def _view(self, reader: FeatureReader) -> None:
        for index in self._order:
            reader[index].tokens[-1, -1]

    def batch(self, indices: Int64[np.ndarray, " clips"]) -> None:
        """Copy clips into batches, as training does."""
        for _ in iterate_batches(self._reader, indices, batch_size=_BATCH_SIZE, device=CPU, unmerged=False):
            pass


class _Lmdb:
    """The same clips in LMDB, in the same order, so that a clip's key follows from its position."""

    def __init__(self, path: Path, clips: Sequence[ClipTokens], order: Int64[np.ndarray, " clips"]) -> None:
        self._open, self._path, self._clip = import_lmdb().open, path, clips[0]
        self._keys = [clip.key.encode() for clip in clips]
        self._order = order.tolist()
        values = [clip.tokens.tobytes() + clip.prefix.tobytes() for clip in clips]
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open(str(path), map_size=2 * sum(map(len, values)) + (1 << 26)) as env, env.begin(write=True) as txn:
            for key, value in zip(self._keys, values, strict=True):
                txn.put(key, value)

    def opened(self) -> Any:
        """Return the environment; it is a context manager that closes itself."""
        return self._open(str(self._path), readonly=True, lock=False)

    def view_anew(self) -> None:
        """View all clips with a new environment."""
        with self.opened() as env:
            self.view(env)

    def view(self, env: Any) -> None:
        """View all clips."""
        width = self._clip.tokens.shape[1]
        with env.begin(buffers=True) as txn:
            for index in self._order:
                np.frombuffer(txn.get(self._keys[index]), np.float16).reshape(-1, width)[-1, -1]

    def batch(self, env: Any, indices: Int64[np.ndarray, " clips"]) -> None:
        """Copy clips into batches; the last batch stays unchanged while the next is made."""
        parts = [self._clip.tokens.size, self._clip.prefix.size]
        batches = [[np.empty((_BATCH_SIZE, size), np.float16) for size in parts] for _ in range(2)]
        with env.begin(buffers=True) as txn:
            for start in range(0, len(indices), _BATCH_SIZE):
                batches.reverse()
                tokens, prefix = batches[0]
                for row, index in enumerate(indices[start : start + _BATCH_SIZE].tolist()):
                    value = np.frombuffer(txn.get(self._keys[index]), np.float16)
                    tokens[row], prefix[row] = value[: parts[0]], value[parts[0] :]
