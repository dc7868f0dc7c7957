"""The interface of a metric: it compares predictions with ground truth of whole clips and returns named numbers."""

from typing import Protocol

from torch import Tensor


class Metric(Protocol):
    """Accumulates over batches; the numbers do not depend on how clips are batched."""

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add a batch of clips."""

    def compute(self) -> dict[str, float]:
        """Return the numbers over everything counted so far.

        Raises:
            ValueError: Nothing has been counted.
        """


def require_counted(count: float, what: str) -> None:
    """Raise if nothing has been counted, as there is no mean over nothing."""
    if not count:
        raise ValueError(f"no {what} has been counted; call update with at least one before compute")
