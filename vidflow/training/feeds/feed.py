"""The contract of feeds: batches of clips on the device, in a given order.

Axes: B clips, T frames, H and W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from vidflow.store.features import FeatureReader
from vidflow.store.shard_clips import ShardClips
from vidflow.training.batches import Batch

Clips = FeatureReader | ShardClips
"""Where the clips of a trial are: `keys`, `labels`, `splits` and annotations by position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Frames of some clips on the device.

    Attributes:
        indices: Position of each clip in its shards; stays on the host.
        frames: Frames, at the encoder's size or larger.
        targets: As `vidflow.training.batches.Batch` has them.
    """

    indices: Int64[np.ndarray, " B"]
    frames: UInt8[Tensor, "B T H W 3"]
    targets: dict[str, Tensor]

    def part(self, start: int, stop: int) -> "FrameBatch":
        """Return some clips of the batch."""
        rows = slice(start, stop)
        return FrameBatch(
            indices=self.indices[rows],
            frames=self.frames[rows],
            targets={name: target[rows] for name, target in self.targets.items()},
        )


class Feed(Protocol):
    """Makes the batches of a trial."""

    @property
    def clips(self) -> Clips:
        """Where the clips are."""
        ...

    def batches(
        self, indices: Int64[np.ndarray, " clips"], *, batch_size: int, epoch: int | None
    ) -> Iterator[Batch | FrameBatch]:
        """Yield the clips at `indices` in batches, in that order; the last batch may be smaller.

        Args:
            indices: Positions of clips.
            batch_size: Clips per batch.
            epoch: Number of the training epoch, which decides the clips' views; None is the plain view, for validation.
        """
        ...


__all__ = ["Clips", "Feed", "FrameBatch"]
