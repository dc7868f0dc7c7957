"""Extraction: encode the frames of one shard with the frozen encoder into one committed feature file.

Axes: B clips of a batch, T frames, K tapped depths, N tokens, D embedding width.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vidflow.ahead import make_ahead
from vidflow.counts import Count, uncounted
from vidflow.files import file_sha256
from vidflow.models.encoder.clip_encoder import ClipEncoder, Encoded, TokenArrays
from vidflow.models.encoder.fitting import fit_frames
from vidflow.records import ClipTokens, Reject
from vidflow.stages.killers import file_to_write, is_wanted, refuse_killer
from vidflow.stages.views import Views
from vidflow.store.digests import check_once
from vidflow.store.features import write_features
from vidflow.store.layout import FileEntry, publish_entry, remove
from vidflow.store.shards import ShardSample, read_shard
from vidflow.video.encode import decompress

ViewOfClip = tuple[ShardSample, UInt8[Tensor, "T s s 3"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractUnit:
    """One feature file to make, and the shard it is made from.

    Attributes:
        file: Name of the feature file.
        shard: Name of the shard.
        source_sha256: Digest of the shard.
        num_clips: Clips in it, for the progress.
        only: Try only these of them, from a first to a last (exclusive) position, and commit nothing.
        left_out: Positions of clips that kill their worker; they become rejects.
    """

    file: str
    shard: str
    source_sha256: str
    num_clips: int = 1
    only: tuple[int, int] | None = None
    left_out: tuple[int, ...] = ()


class Extractor:
    """Encodes shards; images are decompressed one batch ahead of the encoder."""

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        shards: Path,
        directory: Path,
        metadata: dict[str, Any],
        frames_per_batch: int,
        num_decompressors: int = 1,
        views: Views | None = None,
    ) -> None:
        """Keep the encoder, the folders and the settings.

        Args:
            encoder: Frozen encoder, on its device.
            shards: Folder of the shards.
            directory: Folder of the feature files.
            metadata: What readers need in addition to the encoder's description: class names, settings, fingerprint.
            frames_per_batch: Frames per call of the encoder, rounded up to whole clips.
            num_decompressors: Threads that decompress images.
            views: Views to store in addition to the plain clips; None: none.
        """
        self._encoder = encoder
        self._shards = shards
        self._directory = directory
        self._metadata = {
            **metadata,
            "encoder": encoder.describe(),
            "embed_dim": encoder.embed_dim,
            "num_prefix_tokens": encoder.num_prefix_tokens,
            "grid": list(encoder.grid),
            "depths": list(encoder.depths),
            **({} if views is None else {"views": views.number, "views_split": views.split}),
        }
        self._views = views
        self._frames_per_batch = frames_per_batch
        self._decompressors = ThreadPoolExecutor(max_workers=num_decompressors)

    def __call__(self, unit: ExtractUnit, count: Count = uncounted) -> FileEntry:
        """Encode one shard and commit its features.

        Raises:
            DamagedError: If the shard's bytes do not have the committed digest.
        """
        started = time.perf_counter()
        check_once(self._shards / unit.shard, unit.source_sha256)
        rejects: list[Reject] = []
        stored: list[str] = []
        path = self._directory / file_to_write(unit.file, unit.only)
        samples = _take_samples(read_shard(self._shards / unit.shard), unit, rejects, count)
        write_features(path, self._encode(samples, stored, rejects, count), self._metadata)
        entry = FileEntry(
            file=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=len(stored),
            seconds=time.perf_counter() - started,
            rejects=[asdict(reject) for reject in rejects],
            details={"source": unit.source_sha256},
        )
        if unit.only is None:
            publish_entry(self._directory, entry)
        else:
            remove(path)
        return entry

    def encode(self, clips: UInt8[Tensor, "B T H W 3"]) -> Encoded:
        """Return the tokens of clips; frames larger than the encoder's input are first resized to it."""
        fitted = fit_frames(clips.flatten(0, 1), self._encoder.img_size)
        return self._encoder.encode(fitted.unflatten(0, clips.shape[:2]))

    def _encode(
        self, samples: Iterator[ShardSample], stored: list[str], rejects: list[Reject], count: Count
    ) -> Iterator[ClipTokens]:
        """Yield each clip, followed by its other views; note the keys of those that are stored."""
        for batch, frames, views in make_ahead(self._batches(samples)):
            last = self._encoder.output_frames(frames.shape[1])
            seen = self._encode_views(views, len(batch))
            for sample, arrays in zip(batch, self.encode(frames).clips(), strict=True):
                shown = [(sample, arrays), *seen.get(sample.key, ())]
                is_finite = all(np.isfinite(each.tokens).all() and np.isfinite(each.prefix).all() for _, each in shown)
                count(1, num_rejects=not is_finite)
                if is_finite:
                    stored.append(sample.key)
                    yield from (_store(view, each, last) for view, each in shown)
                else:
                    rejects.append(_non_finite(sample))

    def _encode_views(
        self, views: Sequence[ViewOfClip], batch_size: int
    ) -> dict[str, list[tuple[ShardSample, TokenArrays]]]:
        """Return the tokens of the views after the first, by the clip's key."""
        seen: dict[str, list[tuple[ShardSample, TokenArrays]]] = {}
        for start in range(0, len(views), batch_size):
            part = views[start : start + batch_size]
            encoded = self._encoder.encode(torch.stack([frames for _, frames in part]))
            for (sample, _), arrays in zip(part, encoded.clips(), strict=True):
                seen.setdefault(sample.key, []).append((sample, arrays))
        return seen

    def _batches(
        self, samples: Iterator[ShardSample]
    ) -> Iterator[tuple[list[ShardSample], UInt8[Tensor, "B T H W 3"], list[ViewOfClip]]]:
        """Yield batches of whole clips, decompressed, and the other views of these clips."""
        for first in samples:
            num_more = -(-self._frames_per_batch // len(first.images)) - 1
            batch = [first, *itertools.islice(samples, num_more)]
            images = [image for sample in batch for image in sample.images]
            frames = np.stack(list(self._decompressors.map(decompress, images)))
            clips = frames.reshape(len(batch), -1, *frames.shape[1:])
            yield batch, torch.from_numpy(clips), self._make_views(batch, clips)

    def _make_views(self, batch: Sequence[ShardSample], clips: UInt8[np.ndarray, "B T H W 3"]) -> list[ViewOfClip]:
        if self._views is None:
            return []
        make = partial(self._views.make, size=self._encoder.img_size)
        by_clip = self._decompressors.map(lambda sample, frames: list(make(sample, frames)), batch, clips)
        return [view for views in by_clip for view in views]


def _take_samples(
    samples: Iterator[ShardSample], unit: ExtractUnit, rejects: list[Reject], count: Count
) -> Iterator[ShardSample]:
    """Yield the samples to encode; those that kill their worker become rejects."""
    for position, sample in enumerate(samples):
        if position in unit.left_out:
            rejects.append(refuse_killer(sample.key, sample.metadata["source"], stage="extract"))
            count(1, num_rejects=1)
        elif is_wanted(position, unit.only):
            yield sample


def _store(sample: ShardSample, arrays: TokenArrays, last: Sequence[int]) -> ClipTokens:
    """Return a clip to store; `last` is the input frame at whose time each output frame is known."""
    return ClipTokens(
        key=sample.key,
        label=sample.label,
        split=sample.metadata["split"],
        pts_seconds=np.asarray(sample.metadata["pts_seconds"], dtype=np.float64)[list(last)],
        tokens=arrays.tokens,
        prefix=arrays.prefix,
        counts=arrays.counts,
        sizes=arrays.sizes,
        assignment=arrays.assignment,
        annotations=sample.annotations,
    )


def _non_finite(sample: ShardSample) -> Reject:
    return Reject(
        key=sample.key,
        path=sample.metadata["source"],
        stage="extract",
        reason="NonFinite",
        message=f"{sample.key}: the encoder gave tokens that fp16 cannot hold; set `normalize: true` or drop the depth",
    )
