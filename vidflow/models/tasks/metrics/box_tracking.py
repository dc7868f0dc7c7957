"""Overlap of tracked boxes.

Axes: B clips, O objects, T frames.
"""

from torch import Tensor

from vidflow.models.tasks.coordinates import box_overlap
from vidflow.models.tasks.metrics.metric import require_counted


class BoxTrackingMetric:
    """Mean IoU in [0, 1]: over the visible frames of each track except the first, then over tracks.

    Source: the 4DS Waymo protocol (arXiv 2412.15212); the given first box does not count, and tracks weigh equally.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._num_tracks = 0

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add predicted `boxes` (B, O, T, 4), compared with `boxes` and `boxes_visible` (B, O, T)."""
        mask = after_first_visible(targets["boxes_visible"]).cpu()
        iou, _ = box_overlap(predictions["boxes"].detach().cpu().double(), targets["boxes"].cpu().double())
        num_frames = mask.sum(-1)
        is_track = num_frames > 0
        per_track = iou.where(mask, iou.new_zeros(())).sum(-1)[is_track] / num_frames[is_track]
        self._total += float(per_track.sum())
        self._num_tracks += int(is_track.sum())

    def compute(self) -> dict[str, float]:
        """Return `miou`."""
        require_counted(self._num_tracks, "track with two visible frames")
        return {"miou": self._total / self._num_tracks}


def after_first_visible(visible: Tensor) -> Tensor:
    """Select the visible frames of each track except the first, which the network is given."""
    return visible & (visible.cumsum(-1) > 1)
