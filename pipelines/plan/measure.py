"""Short measurements on this machine: a few videos through every stage, one training step per core, the disk.

Everything runs in this process with the threads of one worker, so seconds are worker seconds. Each is the median of
several measurements, because other programs may use the machine too.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.extract import build_extractor
from pipelines.placement import place_workers, this_machine
from pipelines.shard import build_shard_builder
from vidflow.config.fingerprints import clip_settings
from vidflow.config.schema import Config, FeatureSet, Trial
from vidflow.config.search import objective_of
from vidflow.errors import VidflowError
from vidflow.files import file_state
from vidflow.models.reduction.build import PostReducer, build_reducer
from vidflow.records import VideoItem
from vidflow.spread import spread
from vidflow.stages.address import Address
from vidflow.stages.clips import ChosenClip, ShardUnit, choose_clips
from vidflow.stages.cost import frame_macs, trial_macs
from vidflow.stages.experiment import Experiment, is_reduced_from_cache
from vidflow.stages.extract import ExtractUnit
from vidflow.stages.finish import finish_stage
from vidflow.stages.reduce import ReduceUnit, TokenReducer
from vidflow.stages.scan import VideoScanner, list_inputs
from vidflow.stages.scanned_rows import list_class_names
from vidflow.stages.scans import Scans
from vidflow.store.features import ClipRow, FeatureFile, FeatureReader
from vidflow.store.layout import FileEntry, committed_entry
from vidflow.store.shard_clips import ShardClips
from vidflow.store.shards import read_members
from vidflow.training.encoding import Encoding
from vidflow.training.trial import run_trial
from vidflow.video.synthetic import VideoSpec, list_videos, write_video

NUM_VIDEOS = 6
"""Number of videos to measure; the first one is only for warm-up."""
_ROUNDS = 3
# Multiply-accumulates of a measured step in which the encoder runs: seconds on a core.
_STEP_MACS = 2e11
_DISK_BYTES = 64 << 20
_TAR_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Cost of one unit of work: a video or a clip.

    Attributes:
        seconds: Worker seconds.
        num_bytes: Bytes it leaves on disk.
        file_seconds: Additional seconds per file.
        file_bytes: Additional bytes per file.
    """

    seconds: float
    num_bytes: float
    file_seconds: float = 0.0
    file_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureProbe:
    """A feature set made of a few clips.

    Attributes:
        rate: Cost per clip, from the shards or, if made from cached tokens, from the dense features.
        tokens_per_frame: Tokens kept at the last tapped depth.
        gflops_per_frame: GFLOPs of the encoder, two FLOPs per multiply-accumulate; None if not known.
        directory: Its folder.
        entries: Its two files: one with a clip for warm-up, and one with the other clips.
    """

    rate: Rate
    tokens_per_frame: float
    gflops_per_frame: float | None
    directory: Path
    entries: tuple[FileEntry, FileEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """Bytes per second to write and sync a large file, and to read it (from disk if the system drops its cache)."""

    write: float
    read: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds per clip of a trial."""

    train: float
    validate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardProbe:
    """A few videos scanned, decoded and packed.

    Attributes:
        scan_seconds: Seconds per video to scan.
        rate: Cost per clip to decode and pack.
        clips_per_video: Clips per video; three squares of one count once.
        directory: Folder of the shards.
        entries: Two shards: one with a clip for warm-up, and one with the other clips.
        class_names: Class names of all rows of the manifest.
    """

    scan_seconds: float
    rate: Rate
    clips_per_video: float
    directory: Path
    entries: tuple[FileEntry, FileEntry]
    class_names: tuple[str, ...]


def probe_disk(directory: Path) -> DiskSpeed:
    """Write, sync and read one file in a folder."""
    path, block = directory / "disk", os.urandom(_DISK_BYTES)
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        reading = time.perf_counter()
        file.read()
        done = time.perf_counter()
    path.unlink()
    return DiskSpeed(write=_DISK_BYTES / (written - started), read=_DISK_BYTES / (done - reading))


def listed_videos(config: Config) -> list[VideoSpec]:
    """Return the videos that a config without a manifest renders."""
    synthetic = config.video.synthetic
    return list_videos(num_train=synthetic.num_train, num_val=synthetic.num_val, seed=synthetic.seed)


def probe_videos(experiment: Experiment, directory: Path) -> tuple[list[VideoItem], Rate | None]:
    """Return a few videos spread over the manifest; if they are not rendered yet, render them here and time it."""
    if experiment.has_rows:
        return _spread(experiment.rows[0]), None
    config = experiment.config
    settings = {k: v for k, v in asdict(config.video.synthetic).items() if k not in ("num_train", "num_val", "seed")}
    items, seconds = [], []
    for video in _spread(listed_videos(config)):
        started = time.perf_counter()
        items.append(write_video(directory, video, **settings))
        seconds.append(time.perf_counter() - started)
    num_bytes = sum(file_state(item.path).num_bytes for item in items) / len(items)
    return items, Rate(seconds=float(np.mean(seconds[1:] or seconds)), num_bytes=num_bytes)


def probe_shard(config: Config, items: Sequence[VideoItem], directory: Path) -> ShardProbe:
    """Scan, decode and pack a few videos.

    Raises:
        VidflowError: If none of the videos can be used.
    """
    resources = config.resources
    scan = VideoScanner(timeout_seconds=resources.decode_timeout_seconds, memory_mib=resources.decode_memory_mib)
    paths = list_inputs(items)
    scanned = scan(paths[:1])
    rounds = [_timed(lambda: scan(paths[1:])) for _ in range(_ROUNDS)]
    scan_seconds, rows = statistics.median(seconds for seconds, _ in rounds), rounds[0][1]
    clips, rejects = choose_clips(
        items, Scans.of([*scanned, *rows]), plain_split=config.plain_split, **asdict(config.video.sampling)
    )
    if not clips:
        raise VidflowError(f"none of {len(items)} videos looked at can be used: {rejects[0].message}")
    build = build_shard_builder(config, directory)()
    warm = build(ShardUnit(file="warm.tar", clips=(clips[0],)))
    entry = _settled(lambda: build(ShardUnit(file="probe.tar", clips=_several(clips))))
    if not warm.num_clips or not entry.num_clips:
        raise VidflowError(f"videos looked at cannot be decoded: {[*warm.rejects, *entry.rejects][0]['message']}")
    num_bytes = _bytes_of_members(_members_of(directory, entry.file))
    return ShardProbe(
        scan_seconds=scan_seconds * len(paths) / max(1, len(rows)) / len(items),
        rate=Rate(seconds=entry.seconds / entry.num_clips, num_bytes=num_bytes / entry.num_clips),
        clips_per_video=sum(clip.crop in (None, "center") for clip in clips) / len(items),
        directory=directory,
        entries=(warm, entry),
        class_names=tuple(list_class_names(items)),
    )


def _members_of(directory: Path, shard: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Return where each member of a shard's clips lies: the entry that a builder returns does not say it."""
    entry = committed_entry(directory, shard)
    assert entry is not None
    return read_members(entry.details["members"])


def _bytes_of_members(members: Mapping[str, Mapping[str, tuple[int, int]]]) -> int:
    """Return the bytes of a shard without the end of the archive, which does not grow with the number of clips."""
    spans = (span for clip in members.values() for span in clip.values())
    return sum(_TAR_BLOCK * (1 + -(-size // _TAR_BLOCK)) for _, size in spans)


def probe_features(
    config: Config, features: FeatureSet, shards: ShardProbe, dense: FeatureProbe | None, directory: Path
) -> FeatureProbe:
    """Make a feature set of a few clips.

    Args:
        config: The experiment.
        features: The feature set.
        shards: The clips.
        dense: The same without token reduction; needed if the reducer acts on cached tokens.
        directory: Folder for the feature set.
    """
    make = _maker(config, features, shards, dense, directory)
    sources = dense.entries if is_reduced_from_cache(features) and dense is not None else shards.entries
    make("warm.arrow", sources[0])
    warm = _settled(lambda: make("warm.arrow", sources[0]))
    entry = _settled(lambda: make("probe.arrow", sources[1]))
    clip_bytes, file_bytes = _shares(warm, entry, "num_bytes")
    clip_seconds, file_seconds = _shares(warm, entry, "seconds")
    stored = FeatureFile(directory / entry.file, entry.sha256)
    counts = np.concatenate([stored[row].counts[:, -1] for row in range(len(stored))])
    macs = frame_macs(config.encoder, features, counts, stored.metadata)
    return FeatureProbe(
        rate=Rate(seconds=clip_seconds, num_bytes=clip_bytes, file_seconds=file_seconds, file_bytes=file_bytes),
        tokens_per_frame=float(counts.mean()),
        gflops_per_frame=None if macs is None else 2 * macs / 1e9,
        directory=directory,
        entries=(warm, entry),
    )


def probe_step(
    config: Config, trial: Trial, shards: ShardProbe, features: FeatureProbe | None, directory: Path
) -> StepTime:
    """Train and validate one batch several times, after one warm-up.

    Args:
        config: The experiment.
        trial: The trial. If the encoder runs in it, the batch has a few clips only, and there is one round.
        shards: A few clips.
        features: The trial's features of these clips; None if it reads frames.
        directory: Folder for the trial.
    """
    encoding = Encoding.of(config, trial)
    macs = trial_macs(config, trial)
    num_clips = trial.batch_size if macs is None else max(1, min(trial.batch_size, int(_STEP_MACS / macs.training)))
    rounds = _ROUNDS if macs is None else 1
    torch.set_num_threads(max(1, int(config.resources.trials.num_cpus)))
    _, *epochs = run_trial(
        replace(trial, epochs=1 + rounds, batch_size=num_clips, train_fraction=1.0, init_from=None),
        _probe_frames(shards, num_clips) if features is None else _probe_tokens(features, num_clips),
        directory=directory,
        key="probe",
        objective=objective_of(config.trials, trial.task),
        device=place_workers(config.resources, "trials", this_machine()).device,
        encoding=encoding,
    )
    train = statistics.median(1 / epoch.metrics["train/clips_per_second"] for epoch in epochs)
    both = statistics.median(epoch.seconds for epoch in epochs) / num_clips
    return StepTime(train=train, validate=max(0.0, both - train))


def _probe_tokens(features: FeatureProbe, num_clips: int) -> FeatureReader:
    """Return a training and a validation split of the few clips whose features were made."""
    entry = features.entries[1]
    metadata = FeatureFile(features.directory / entry.file, entry.sha256).metadata
    # Any row stands for a clip here, also one of another view.
    metadata.pop("views", None)
    keys = [str(place) for place in range(entry.num_clips)]
    _finish_probe(features.directory, entry, keys, num_clips, metadata=metadata)
    return FeatureReader(features.directory)


def _probe_frames(shards: ShardProbe, num_clips: int) -> ShardClips:
    """Return a training and a validation split of the few clips that were packed."""
    entry = shards.entries[1]
    keys = list(_members_of(shards.directory, entry.file))
    _finish_probe(shards.directory, entry, keys, num_clips, class_names=list(shards.class_names))
    return ShardClips(shards.directory)


def _finish_probe(directory: Path, entry: FileEntry, keys: Sequence[str], num_clips: int, **details: Any) -> None:
    rows = [
        ClipRow(
            key=keys[place % len(keys)], label=0, split=split, file=entry.file, row=place % len(keys), video=str(place)
        )
        for split in ("train", "val")
        for place in range(num_clips)
    ]
    address = Address(directory=directory, settings={})
    finish_stage(address, stage="probe", entries=[entry], clips=rows, rejects=[], wall_seconds=0.0, **details)


def _maker(
    config: Config, features: FeatureSet, shards: ShardProbe, dense: FeatureProbe | None, directory: Path
) -> Callable[[str, FileEntry], FileEntry]:
    """Return a function that makes one feature file from one shard or dense file."""
    metadata: dict[str, Any] = {"fingerprint": "probe", "settings": asdict(features)}
    if is_reduced_from_cache(features):
        assert dense is not None
        reducer = features.reducer
        made = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
        assert isinstance(made, PostReducer)
        reduce = TokenReducer(made, dense=dense.directory, directory=directory, metadata=metadata)
        return lambda file, source: reduce(
            ReduceUnit(file=file, dense=source.file, source_sha256=source.sha256, num_clips=source.num_clips)
        )
    metadata |= {
        "class_names": list(shards.class_names),
        "num_frames": config.video.sampling.num_frames,
        "clip": clip_settings(config),
    }
    extract = build_extractor(
        config,
        features,
        shards.directory,
        directory,
        metadata,
        place_workers(config.resources, "extract", this_machine()),
    )
    return lambda file, source: extract(ExtractUnit(file=file, shard=source.file, source_sha256=source.sha256))


def _settled(make: Callable[[], FileEntry]) -> FileEntry:
    """Make the same file several times, each time replacing it, and return its entry with the median seconds."""
    entries = [make() for _ in range(_ROUNDS)]
    return replace(entries[-1], seconds=statistics.median(entry.seconds for entry in entries))


def _shares(small: FileEntry, large: FileEntry, attribute: str) -> tuple[float, float]:
    """Return the cost per clip and the additional cost per file, from two files that differ only in their clips."""
    few, many = getattr(small, attribute), getattr(large, attribute)
    more = large.num_clips - small.num_clips
    if more <= 0 or many <= few:  # the machine may have been busier during the smaller file
        return many / large.num_clips, 0.0
    per_clip = (many - few) / more
    return per_clip, max(0.0, few - per_clip * small.num_clips)


def _several(clips: Sequence[ChosenClip]) -> tuple[ChosenClip, ...]:
    """Return up to `NUM_VIDEOS - 1` clips, sorted and spread over all but the first, or the only clip."""
    return tuple(_spread(clips[1:] or clips, NUM_VIDEOS - 1))


def _spread(values: Sequence[Any], number: int = NUM_VIDEOS) -> list[Any]:
    return [values[place] for place in spread(len(values), number)]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
