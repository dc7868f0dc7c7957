"""The feeds `features` and `prefix`: batches of stored tokens, of one stored view of each training clip."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64

from vidflow.store.features import FeatureReader
from vidflow.training.batches import Batch, iterate_batches
from vidflow.video.view_draws import clip_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFeed:
    """Batches of stored tokens.

    Attributes:
        clips: The feature set.
        device: Where batches go.
        num_depths: Number of tapped depths, counted from the last; None is all.
        arrays: Names of the annotations that the task needs.
        unmerged: Whether reduced tokens are put back on the full grid of patches.
        seed: Seed of the views and of the hidden frames.
        hides_frames: Whether targets have `mask_draws` (B, T), random numbers by which a task hides frames.
    """

    clips: FeatureReader
    device: torch.device
    num_depths: int | None
    arrays: Sequence[str]
    unmerged: bool
    seed: int
    hides_frames: bool = False

    def batches(self, indices: Int64[np.ndarray, " clips"], *, batch_size: int, epoch: int | None) -> Iterator[Batch]:
        """Yield batches; see `Feed`."""
        num_views = self.clips.num_views if epoch is not None else 1

        def view_of(index: int) -> int:
            assert epoch is not None
            return int(clip_generator(self.seed, epoch, self.clips.keys[index]).integers(num_views))

        batches = iterate_batches(
            self.clips,
            indices,
            batch_size=batch_size,
            device=self.device,
            num_depths=self.num_depths,
            arrays=self.arrays,
            unmerged=self.unmerged,
            view_of=view_of if num_views > 1 else None,
        )
        # `map`, because a loop would hold a batch that the caller has dropped; its memory is used again.
        return map(functools.partial(self._with_draws, epoch=epoch or 0), batches) if self.hides_frames else batches

    def _with_draws(self, batch: Batch, epoch: int) -> Batch:
        """Add each clip's random numbers of an epoch; validation has those of epoch 0, the same every time."""
        keys = [f"{self.clips.keys[int(index)]} hidden" for index in batch.indices]  # other numbers than for views
        draws = np.stack([clip_generator(self.seed, epoch, key).random(batch.tokens.shape[1]) for key in keys])
        return replace(batch, targets={**batch.targets, "mask_draws": torch.from_numpy(draws).to(self.device)})


__all__ = ["StoredFeed"]
