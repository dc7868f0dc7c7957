"""Videos as the unit of a metric: the mean of the probabilities that its clips give decides on a video.

Axes: B clips, T frames, C classes, V videos.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidflow.models.tasks import Metric

# So that the logarithm of a probability that is zero in single precision stays finite.
_SMALLEST = torch.finfo(torch.float32).tiny


class VideoVotes:
    """Gathers the answers of clips by video, and gives each video once to a metric of classification."""

    def __init__(self, videos: Sequence[str]) -> None:
        """Start with none.

        Args:
            videos: The video of each clip, by position.
        """
        self._videos = videos
        self._sums: dict[str, tuple[Float[Tensor, " C"], Int64[Tensor, ""]]] = {}

    def add(self, indices: Sequence[int], predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add the probabilities at the last frame of `logits (B, T, C)`, of the clips at these positions."""
        shares = predictions["logits"][:, -1].detach().float().softmax(-1).cpu().double()
        for index, share, label in zip(indices, shares, targets["label"].cpu(), strict=True):
            known, _ = self._sums.get(self._videos[index], (torch.zeros_like(share), label))
            self._sums[self._videos[index]] = known + share, label

    def count(self, metric: Metric) -> None:
        """Add every video to the metric, as one clip of one frame."""
        if self._sums:
            sums, labels = (torch.stack(list(part)) for part in zip(*self._sums.values(), strict=True))
            # Their sizes do not change which class is first, so sums need not become means.
            logits = sums.clamp(min=_SMALLEST).log()[:, None]
            metric.update({"logits": logits}, {"label": labels})


__all__ = ["VideoVotes"]
