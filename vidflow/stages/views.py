"""Stored views of training clips: what extraction encodes in addition to the plain clip.

Axes: T frames, H and W pixels, s side of the encoder's input.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from vidflow.config.schema import Augmentation
from vidflow.store.shards import ShardSample
from vidflow.video.augmentation import augment_frames
from vidflow.video.augmented_targets import augment_targets, exchanged_label
from vidflow.video.view_draws import clip_generator, draw_view


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Which views of which clips are stored.

    Attributes:
        number: Views of a clip, with the plain one.
        augmentation: What the others are drawn from.
        split: Split whose clips have them.
        label_pairs: Class -> class of the mirrored clip.
    """

    number: int
    augmentation: Augmentation
    split: str
    label_pairs: Mapping[int, int] = field(default_factory=dict)

    def count(self, split: str) -> int:
        """Return the number of stored views of a clip."""
        return self.number if split == self.split else 1

    def make(
        self, sample: ShardSample, frames: UInt8[np.ndarray, "T H W 3"], *, size: int
    ) -> Iterator[tuple[ShardSample, UInt8[Tensor, "T s s 3"]]]:
        """Yield the views of a clip after the plain one, with their classes and their ground truth.

        View n depends on n and on the clip's key only.
        """
        for number in range(1, self.count(sample.metadata["split"])):
            side = frames.shape[1]
            view = draw_view(self.augmentation, clip_generator(number, 0, sample.key), size=side)
            label, truth = exchanged_label(sample.label, view, self.label_pairs), b""
            if sample.annotations:
                with np.load(io.BytesIO(sample.annotations), allow_pickle=False) as stored:
                    buffer = io.BytesIO()
                    np.savez_compressed(buffer, allow_pickle=False, **augment_targets(stored, view, size=side))
                    truth = buffer.getvalue()
            yield replace(sample, label=label, annotations=truth), augment_frames(frames, view, size=size)


__all__ = ["Views"]
