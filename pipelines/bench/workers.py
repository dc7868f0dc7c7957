"""What `vidflow bench` runs in workers: a stage's own worker, and the bare loop for comparison."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from pipelines.extract import build_extractor
from pipelines.placement import Placement
from pipelines.shard import build_shard_builder
from vidflow.config.schema import Config, Trial, Video
from vidflow.config.search import objective_of
from vidflow.counts import Count
from vidflow.stages.address import Address
from vidflow.stages.clips import ChosenClip, ShardUnit
from vidflow.stages.extract import ExtractUnit
from vidflow.store.features import FeatureReader
from vidflow.store.shards import read_shard
from vidflow.training.trial import run_trial
from vidflow.video.decode import crop_square
from vidflow.video.encode import compress, decompress
from vidflow.video.ffmpeg import frames_in_order


class ShardBench:
    """Makes shards, or only decodes and compresses their clips."""

    def __init__(self, config: Config, directory: str) -> None:
        self._config = config
        self._build = build_shard_builder(config, Path(directory))()

    def __call__(self, job: tuple[str, ShardUnit], count: Count) -> float:
        """Do one unit and return the peak memory of this process and its decoder so far, in MiB."""
        mode, unit = job
        if mode == "bare":
            self._loop(unit)
        else:
            self._build(replace(unit, file=f"{time.monotonic_ns()}.tar"))
        count(1)
        return peak_mib()

    def _loop(self, unit: ShardUnit) -> None:
        video, shards = self._config.video, self._config.shards
        for clip in unit.clips:
            for frame in decode_frames(clip, video):
                compress(frame, shards.image_format, shards.jpeg_quality)


class ExtractBench:
    """Encodes shards, or only runs the encoder on frames in memory."""

    def __init__(self, config: Config, name: str, shards: str, directory: str, placement: Placement) -> None:
        self._config, self._shards = config, Path(shards)
        metadata = {"class_names": [], "fingerprint": "", "num_frames": config.video.sampling.num_frames}
        self._extractor = build_extractor(
            config, config.features[name], self._shards, Path(directory), metadata, placement
        )
        self._frames: dict[str, torch.Tensor] = {}

    def __call__(self, job: tuple[str, ExtractUnit], count: Count) -> float:
        """Do one shard and return the peak memory of this process so far, in MiB."""
        mode, unit = job
        if mode == "bare":
            self._loop(unit)
        else:
            self._extractor(replace(unit, file=f"{time.monotonic_ns()}.arrow"))
        count(1)
        return peak_mib()

    def _loop(self, unit: ExtractUnit) -> None:
        if unit.file not in self._frames:
            images = (image for sample in read_shard(self._shards / unit.shard) for image in sample.images)
            self._frames[unit.file] = torch.from_numpy(np.stack([decompress(image) for image in images]))
        num_frames = self._config.video.sampling.num_frames
        for batch in self._frames[unit.file].split(
            -(-self._config.resources.frames_per_batch // num_frames) * num_frames
        ):
            self._extractor.encode(batch.unflatten(0, (-1, num_frames)))


class TrialBench:
    """Trains trials one after the other, without Tune and MLflow."""

    def __init__(self, config: Config, features: dict[str, Address], placement: Placement) -> None:
        self._config, self._features, self._device = config, features, placement.device
        torch.set_num_threads(max(1, int(placement.num_cpus)))

    def __call__(self, job: tuple[Trial, Path], count: Count) -> float:
        """Train one trial and return how long it took, in seconds."""
        trial, directory = job
        started = time.perf_counter()
        results = run_trial(
            replace(trial, init_from=None),
            FeatureReader(self._features[trial.features].directory),
            directory=directory,
            key="bench",
            objective=objective_of(self._config.trials, trial.task),
            names=self._config.trials.splits,
            device=torch.device(self._device),
        )
        for _ in results:
            pass
        count(1)
        return time.perf_counter() - started


def decode_frames(clip: ChosenClip, video: Video) -> UInt8[np.ndarray, "T H W 3"]:
    """Decode a clip from its video as a simple loop does: in order and without checks of the file."""
    frames = frames_in_order(Path(clip.path), clip.times)
    return np.stack([crop_square(frame, video.size, video.resize_filter) for frame in frames])


def copy_files(directory: Path, chunk: int) -> float:
    """Copy the bytes of all feature files from memory maps into one buffer, `chunk` bytes at a time; return GB/s."""
    maps = [np.memmap(path, mode="r") for path in sorted(directory.glob("*.arrow"))]
    target = np.empty(chunk, np.uint8)
    started = time.perf_counter()
    for each in maps:
        for start in range(0, len(each) - chunk, chunk):
            np.copyto(target, each[start : start + chunk])
    return sum(map(len, maps)) / (time.perf_counter() - started) / 1e9


def copy_clips(reader: FeatureReader) -> float:
    """Copy the tokens of every clip from the reader into one buffer, with one thread; return GB/s."""
    target = np.empty_like(reader[0].tokens)
    num_bytes = 0
    started = time.perf_counter()
    for index in range(len(reader)):
        tokens = reader[index].tokens
        np.copyto(target, tokens)
        num_bytes += tokens.nbytes
    return num_bytes / (time.perf_counter() - started) / 1e9


def peak_mib() -> float:
    """Return the sum of the peak resident memories so far of this process and its living children, in MiB."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    statuses = [Path("/proc", pid, "status").read_text() for pid in ("self", *children)]
    peaks = [int(line.split()[1]) for text in statuses for line in text.splitlines() if line.startswith("VmHWM")]
    return sum(peaks) / 1024
