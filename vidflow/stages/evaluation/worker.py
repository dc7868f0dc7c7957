"""Evaluate one point on one shard into one committed file.

Axes: B clips of a batch, T frames, H and W pixels.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from vidflow.ahead import make_ahead
from vidflow.config.schema import VideoModel
from vidflow.counts import Count, uncounted
from vidflow.files import file_sha256
from vidflow.models.encoder.build import EncoderDtype
from vidflow.models.encoder.video import VideoClassifier, VideoRecipe, build_video_classifier, with_reduction
from vidflow.models.encoder.video.attentions import Attended
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.state import ClipTokens
from vidflow.models.encoder.video.walk import ClipWalk
from vidflow.stages.evaluation.files import ShardLogits, key_number, write_logits
from vidflow.stages.evaluation.points import Point, reduction_of
from vidflow.store.digests import check_once
from vidflow.store.layout import FileEntry, publish_entry
from vidflow.store.shards import ShardSample, read_shard
from vidflow.video.encode import decompress

Answer = Callable[[VideoClassifier, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateUnit:
    """One point on one shard.

    Attributes:
        file: Name of the file to make, with the folder of its point.
        point: The point.
        shards: Folder of the shards.
        shard: Name of the shard.
        source_sha256: Digest of the shard.
        num_clips: Clips of the shard that are evaluated.
    """

    file: str
    point: Point
    shards: Path
    shard: str
    source_sha256: str
    num_clips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSetup:
    """What a worker builds a model from.

    Attributes:
        settings: Settings of the model.
        recipe: What to build.
        class_names: Names of the classes of each head; None is the checkpoint's.
        geometry: Its clips, normalised as the protocol says.
    """

    settings: VideoModel
    recipe: VideoRecipe
    class_names: Mapping[str, tuple[str, ...]] | None
    geometry: ClipGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedWalk(ClipWalk):
    """A walk that notes how long matching, merging and dropping take.

    Attributes:
        device: Where it runs.
        seconds: Time of every block's reduction.
    """

    device: torch.device
    seconds: list[float]

    def reduce(self, state: ClipTokens, attended: Attended, index: int, seeds: Int[Tensor, " B"] | None) -> ClipTokens:
        """Reduce, and wait for the device before and after."""
        synchronize(self.device)
        started = time.perf_counter()
        reduced = ClipWalk.reduce(self, state, attended, index, seeds)
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - started)
        return reduced


class Evaluator:
    """Evaluates units; a model is built once for all its points that follow each other."""

    def __init__(
        self,
        setups: Mapping[str, ModelSetup],
        *,
        directory: Path,
        split: str,
        device: str,
        dtype: EncoderDtype,
        clips_per_batch: int,
        answer: Answer | None = None,
        num_decompressors: int = 1,
    ) -> None:
        """Build no model yet.

        Args:
            setups: Models by name.
            directory: Folder of all points.
            split: Split whose clips are evaluated.
            device: Where models run.
            dtype: Number format in which they run.
            clips_per_batch: Clips per call of a model.
            answer: What is stored of a batch, by name; None is the logits.
            num_decompressors: Threads that decompress images.
        """
        self._setups, self._directory, self._split = setups, directory, split
        self._device, self._dtype, self._clips_per_batch, self._answer = (
            device,
            dtype,
            clips_per_batch,
            answer or VideoClassifier.classify,
        )
        self._decompressors = ThreadPoolExecutor(max_workers=num_decompressors)
        self._model: tuple[str, VideoClassifier] | None = None
        self._reduced: tuple[Point, VideoClassifier] | None = None

    def __call__(self, unit: EvaluateUnit, count: Count = uncounted) -> FileEntry:
        """Classify the clips of one shard and commit their logits.

        Args:
            unit: The point and the shard.
            count: Called as clips are done.

        Raises:
            DamagedError: If the shard's bytes do not have the committed digest.
            VidflowError: If the model cannot be built.
        """
        started = time.perf_counter()
        check_once(unit.shards / unit.shard, unit.source_sha256)
        is_new = self._reduced is None or self._reduced[0] != unit.point
        classifier = self._classifier(unit.point)
        samples = (each for each in read_shard(unit.shards / unit.shard) if each.metadata["split"] == self._split)
        keys: list[int] = []
        labels: list[int] = []
        parts: dict[str, list[np.ndarray]] = {}
        pace: list[tuple[int, float]] = []  # clips and seconds of each batch
        share = None
        for batch, frames in make_ahead(self._batches(samples)):
            if is_new and share is None:
                share = matching_share(classifier, frames)  # also warms up
            before = time.perf_counter()
            logits = {head: values.float().cpu().numpy() for head, values in self._answer(classifier, frames).items()}
            pace.append((len(batch), time.perf_counter() - before))
            keys += [key_number(sample.key) for sample in batch]
            labels += [sample.label for sample in batch]
            count(len(batch))
            for head, values in logits.items():
                parts.setdefault(head, []).append(values)
        path = self._directory / unit.file
        shard = ShardLogits(
            keys=np.array(keys, dtype=np.uint64),
            labels=np.array(labels, dtype=np.int64),
            logits={head: np.concatenate(each) for head, each in parts.items()},
        )
        write_logits(path, shard)
        entry = FileEntry(
            file=unit.file,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=len(keys),
            seconds=time.perf_counter() - started,
            rejects=[],
            details={"source": unit.source_sha256, "pace": pace, "matching_share": share},
        )
        publish_entry(self._directory, entry)
        return entry

    def _classifier(self, point: Point) -> VideoClassifier:
        if self._reduced is None or self._reduced[0] != point:
            setup = self._setups[point.model]
            model = self._build(point.model)
            self._reduced = (point, with_reduction(model, reduction_of(point, setup.settings)))
        return self._reduced[1]

    def _build(self, name: str) -> VideoClassifier:
        if self._model is None or self._model[0] != name:
            setup = self._setups[name]
            self._model = self._reduced = None  # two large models need not fit at once
            model = build_video_classifier(
                setup.recipe, device=self._device, dtype=self._dtype, class_names=setup.class_names
            )
            model.geometry = setup.geometry
            self._model = (name, model)
        return self._model[1]

    def _batches(
        self, samples: Iterator[ShardSample]
    ) -> Iterator[tuple[list[ShardSample], UInt8[Tensor, "B T H W 3"]]]:
        """Yield batches of clips, decompressed."""
        while batch := list(itertools.islice(samples, self._clips_per_batch)):
            images = [image for sample in batch for image in sample.images]
            frames = np.stack(list(self._decompressors.map(decompress, images)))
            yield batch, torch.from_numpy(frames.reshape(len(batch), -1, *frames.shape[1:]))


def matching_share(classifier: VideoClassifier, frames: UInt8[Tensor, "B T H W 3"]) -> float:
    """Return the share of a forward's time that token reduction takes: matching, and moving tokens."""
    values = {field.name: getattr(classifier.walk, field.name) for field in fields(ClipWalk)}
    classifier.classify(frames)  # warms up
    walk = TimedWalk(**values, device=classifier.device, seconds=[])
    timed = classifier.with_walk(walk)
    started = time.perf_counter()
    timed.classify(frames)
    synchronize(classifier.device)
    return sum(walk.seconds) / (time.perf_counter() - started) if walk.reducer is not None else 0.0


def synchronize(device: torch.device) -> None:
    """Wait for everything that was started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = ["Answer", "EvaluateUnit", "Evaluator", "ModelSetup", "matching_share"]
