"""Accuracy of tracked points: average Jaccard, distance and visibility.

Axes: B clips, Q points, T frames.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vidflow.models.tasks.metrics.metric import require_counted

QueryMode = Literal["first", "strided"]
"""Which frames count: those after the query frame, or all but the query frame."""

RASTER = 256
"""Side in pixels of the raster on which points are compared. Source: TAP-Vid (arXiv 2211.03726), section 4."""
_THRESHOLD_PIXELS = (1.0, 2.0, 4.0, 8.0, 16.0)


class PointTrackingMetric:
    """Average Jaccard, share of points within 1 to 16 pixels of 256, and visibility accuracy, each in [0, 1].

    Each clip gets its own score, and the scores are averaged.

    Source: TAP-Vid (arXiv 2211.03726), section 4.
    """

    def __init__(self, query_mode: QueryMode = "first") -> None:
        self._query_mode = query_mode
        self._totals = torch.zeros(3, dtype=torch.float64)
        self._num_clips = 0

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add a batch of clips.

        Args:
            predictions: `points` (B, Q, T, 2) in [0, 1], `visibility_logits`, `uncertainty_logits` (B, Q, T).
            targets: `points`, `points_visible` (B, Q, T), `query_frames` (B, Q). Points that are never visible do not
                count, nor do clips without a visible point in the counted frames.
        """
        visible = targets["points_visible"].cpu()
        counted = self._counted(visible, targets["query_frames"].cpu())
        offset = predictions["points"].detach().cpu().double() - targets["points"].cpu().double()
        distance = (RASTER * offset).norm(dim=-1)
        claimed = claimed_visible(predictions).cpu()
        for clip in range(len(visible)):
            keep = counted[clip]
            if (visible[clip] & keep).any():
                self._totals += _score(visible[clip][keep], claimed[clip][keep], distance[clip][keep])
                self._num_clips += 1

    def compute(self) -> dict[str, float]:
        """Return `average_jaccard`, `delta_avg` and `occlusion_accuracy`."""
        require_counted(self._num_clips, "clip with a visible point after its query frame")
        jaccard, within, occlusion = (self._totals / self._num_clips).tolist()
        return {"average_jaccard": jaccard, "delta_avg": within, "occlusion_accuracy": occlusion}

    def _counted(self, visible: Bool[Tensor, "B Q T"], query_frames: Tensor) -> Bool[Tensor, "B Q T"]:
        if self._query_mode == "first":
            return after_query_frame(visible, query_frames)
        frames = torch.arange(visible.shape[-1])
        return visible.any(-1, keepdim=True) & (frames != query_frames[..., None])


def claimed_visible(predictions: dict[str, Tensor]) -> Bool[Tensor, "*batch Q T"]:
    """Return where a point counts as predicted visible: sigmoid(visibility) (1 - sigmoid(uncertainty)) > 0.5.

    Source: TAPIR (arXiv 2306.08637).
    """
    return predictions["visibility_logits"].sigmoid() * (1 - predictions["uncertainty_logits"].sigmoid()) > 0.5


def _score(visible: Tensor, claimed: Tensor, distance: Tensor) -> Tensor:
    """Score one clip from its counted frames, one entry per point and frame."""
    jaccards, shares = [], []
    num_visible = visible.sum()
    for threshold in _THRESHOLD_PIXELS:
        near = distance < threshold
        hits = (visible & claimed & near).sum()
        false = (claimed & ~(visible & near)).sum()
        jaccards.append(hits / (num_visible + false))
        shares.append((visible & near).sum() / num_visible)
    occlusion = (visible == claimed).double().mean()
    return torch.stack([torch.stack(jaccards).double().mean(), torch.stack(shares).double().mean(), occlusion])


def after_query_frame(visible: Bool[Tensor, "B Q T"], query_frames: Int[Tensor, "B Q"]) -> Bool[Tensor, "B Q T"]:
    """Select the frames after the query frame of the points that are visible at least once."""
    frames = torch.arange(visible.shape[-1], device=visible.device)
    return visible.any(-1, keepdim=True) & (frames > query_frames[..., None])
