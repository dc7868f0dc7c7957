"""Which frames of a clip are hidden from a core that learns to predict them.

Axes: B clips, T frames, k visible and h hidden frames, N tokens of a frame, D width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


class Places(NamedTuple):
    """The numbers of the frames of each clip, both in time order."""

    visible: Int64[Tensor, "B k"]
    hidden: Int64[Tensor, "B h"]


def choose_places(scores: Float[Tensor, "B T"], num_visible: int) -> Places:
    """Leave the frames with the smallest scores visible; of equal scores, the earlier frame."""
    order = scores.argsort(dim=1, stable=True)
    return Places(order[:, :num_visible].sort(dim=1).values, order[:, num_visible:].sort(dim=1).values)


def score_changes(tokens: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T"]:
    """Return the cosine of each frame's mean token to that of the frame before; minus infinity for the first frame.

    A small score is a frame that brings something new.

    Source: LV-MAE (Naiman et al., ICCV 2025), importance masking of segment embeddings. Differs: the unit is a frame,
    and the published score of the first place is 0, by which it may be hidden although nothing predicts it.
    """
    means = tokens.float().mean(2)
    cosines = functional.cosine_similarity(means[:, :-1], means[:, 1:], dim=-1)
    return torch.cat([torch.full_like(cosines[:, :1], -torch.inf), cosines], dim=1)


def nearest_visible(places: Places) -> Int64[Tensor, "B h"]:
    """Return for each hidden frame the visible one that is nearest in time; of two, the earlier."""
    distances = (places.hidden[:, :, None] - places.visible[:, None]).abs()
    return places.visible.gather(1, distances.argmin(-1))


def take_frames(values: Float[Tensor, "B T *rest"], frames: Int64[Tensor, "B k"]) -> Float[Tensor, "B k *rest"]:
    """Return some frames of each clip, in the given order."""
    return values[torch.arange(len(values), device=values.device)[:, None], frames]


__all__ = ["Places", "choose_places", "nearest_visible", "score_changes", "take_frames"]
