"""Accuracy of the last frame's classes, with confidence intervals and the confusion matrix.

Axes: B clips, T frames, C classes.
"""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from vidflow.models.tasks.metrics.metric import require_counted

# Two-sided 95 percent quantile of the normal distribution.
_Z95 = 1.959963984540054


class ClassificationMetric:
    """Top-1 and top-5 accuracy in [0, 1].

    Attributes:
        confusion: Number of clips by true class (rows) and predicted class (columns); empty before the first update.
    """

    confusion: Int[Tensor, "C C"]

    def __init__(self) -> None:
        self.confusion = torch.zeros(0, 0, dtype=torch.int64)
        self._num_top5 = 0

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add `logits` (B, T, C), compared at the last frame with `label` (B,)."""
        logits, labels = predictions["logits"][:, -1].detach().cpu(), targets["label"].cpu()
        num_classes = logits.shape[-1]
        if not len(self.confusion):
            self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        cells = labels * num_classes + logits.argmax(-1)
        self.confusion += torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
        top5 = logits.topk(min(5, num_classes), dim=-1).indices
        self._num_top5 += int((top5 == labels[:, None]).any(-1).sum())

    def compute(self) -> dict[str, float]:
        """Return `top1`, `top5` and the bounds of their 95 percent intervals, such as `top1_low`."""
        total = int(self.confusion.sum())
        require_counted(total, "clip")
        results: dict[str, float] = {}
        for name, hits in (("top1", int(self.confusion.trace())), ("top5", self._num_top5)):
            low, high = wilson_interval(hits, total)
            results |= {name: hits / total, f"{name}_low": low, f"{name}_high": high}
        return results


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 percent score interval of a proportion.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    share, shrink = hits / total, 1 + _Z95**2 / total
    center = (share + _Z95**2 / (2 * total)) / shrink
    half = _Z95 / shrink * math.sqrt(share * (1 - share) / total + _Z95**2 / (4 * total**2))
    # With no hit or no miss one bound equals the share; rounding must not put the share outside the interval.
    return min(share, max(0.0, center - half)), max(share, min(1.0, center + half))
