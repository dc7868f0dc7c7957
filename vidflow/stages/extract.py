"""Extraction: the frames of one shard through the frozen encoder, into one committed feature file.

Axes: B clips of a batch, T frames, K tapped depths, N tokens, D embedding width.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vidflow.models.encoder import EncodedFrames, FrozenEncoder
from vidflow.records import ClipTokens, Reject
from vidflow.store.features import write_features
from vidflow.store.layout import FileEntry, check_digest, file_sha256, publish_entry
from vidflow.store.shards import ShardSample, read_shard
from vidflow.video.encode import decompress


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractPlan:
    """One feature file to make, and the shard it is made from."""

    file: str
    shard: FileEntry


class Extractor:
    """Encodes shards; images are decompressed one batch ahead of the encoder."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        *,
        shards: Path,
        directory: Path,
        metadata: dict[str, Any],
        frames_per_batch: int,
    ) -> None:
        """Keep the encoder and where things lie.

        Args:
            encoder: Frozen encoder, on its device.
            shards: Folder of the shards.
            directory: Folder of the feature files.
            metadata: What readers need besides the encoder's own description: class names, settings, fingerprint.
            frames_per_batch: Frames per call of the encoder, rounded up to whole clips.
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
        }
        self._frames_per_batch = frames_per_batch
        self._ahead = ThreadPoolExecutor(max_workers=1)

    def __call__(self, plan: ExtractPlan) -> FileEntry:
        """Encode one shard and commit its features.

        Raises:
            VidflowError: If the shard's bytes are not those that were committed.
        """
        started = time.perf_counter()
        check_digest(self._shards, plan.shard)
        rejects: list[Reject] = []
        path = self._directory / plan.file
        samples = read_shard(self._shards / plan.shard.file)
        num_clips = write_features(path, self._encode(samples, rejects), self._metadata)
        entry = FileEntry(
            file=path.name,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_clips=num_clips,
            seconds=time.perf_counter() - started,
            rejects=[asdict(reject) for reject in rejects],
            details={},
        )
        publish_entry(self._directory, entry)
        return entry

    def encode_frames(self, frames: UInt8[Tensor, "B H W 3"]) -> EncodedFrames:
        """Return the tokens of frames, reduced to the encoder's size if they are larger."""
        return self._encoder(fit_frames(frames, self._encoder.img_size))

    def _encode(self, samples: Iterator[ShardSample], rejects: list[Reject]) -> Iterator[ClipTokens]:
        for batch, frames in self._batches(samples):
            encoded = self.encode_frames(frames.flatten(0, 1))
            for sample, clip in zip(batch, split_clips(batch, encoded), strict=True):
                if np.isfinite(clip.tokens).all() and np.isfinite(clip.prefix).all():
                    yield clip
                else:
                    rejects.append(_non_finite(sample))

    def _batches(
        self, samples: Iterator[ShardSample]
    ) -> Iterator[tuple[list[ShardSample], UInt8[Tensor, "B T H W 3"]]]:
        """Yield batches of whole clips, the next one decompressed while the caller works on the last."""
        coming = self._ahead.submit(self._next_batch, samples)
        while True:
            batch, frames = coming.result()
            if not batch:
                return
            coming = self._ahead.submit(self._next_batch, samples)
            yield batch, frames

    def _next_batch(self, samples: Iterator[ShardSample]) -> tuple[list[ShardSample], UInt8[Tensor, "B T H W 3"]]:
        first = next(samples, None)
        if first is None:
            return [], torch.empty(0)
        num_more = -(-self._frames_per_batch // len(first.images)) - 1
        batch = [first, *itertools.islice(samples, num_more)]
        frames = np.stack([[decompress(image) for image in sample.images] for sample in batch])
        return batch, torch.from_numpy(frames)


def fit_frames(frames: UInt8[Tensor, "B H W 3"], img_size: int) -> UInt8[Tensor, "B h w 3"]:
    """Return square frames at the encoder's size; larger ones are reduced (bicubic, antialiased)."""
    if frames.shape[1] == img_size:
        return frames
    small = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), size=(img_size, img_size), mode="bicubic", antialias=True
    )
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def split_clips(batch: Sequence[ShardSample], encoded: EncodedFrames) -> Iterator[ClipTokens]:
    """Yield the tokens of each clip of a batch, in fp16."""
    tokens = encoded.tokens.to(torch.float16).cpu().unflatten(0, (len(batch), -1)).numpy()
    prefix = encoded.prefix.to(torch.float16).cpu().unflatten(0, (len(batch), -1)).numpy()
    for index, sample in enumerate(batch):
        num_frames, num_depths, num_tokens, embed_dim = tokens[index].shape
        yield ClipTokens(
            key=sample.key,
            label=sample.label,
            split=sample.metadata["split"],
            pts_seconds=np.asarray(sample.metadata["pts_seconds"], dtype=np.float64),
            tokens=tokens[index].reshape(-1, embed_dim),
            prefix=prefix[index],
            counts=np.full((num_frames, num_depths), num_tokens, dtype=np.int32),
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
