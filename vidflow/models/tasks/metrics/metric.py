"""The contract of a metric: predictions and ground truth of whole clips in, named numbers out."""

from typing import Protocol

from torch import Tensor


class Metric(Protocol):
    """Accumulates over batches; the same clips in other batches give the same numbers."""

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Count a batch of clips."""

    def compute(self) -> dict[str, float]:
        """Return the numbers over everything counted so far.

        Raises:
            ValueError: Nothing has been counted.
        """


def require_counted(count: float, what: str) -> None:
    """Raise where a mean over nothing would be reported."""
    if not count:
        raise ValueError(f"no {what} has been counted; call update with at least one before compute")
