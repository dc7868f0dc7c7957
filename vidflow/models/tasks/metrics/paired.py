"""Compare two classifiers on the same clips: McNemar's exact test, and a bootstrap over clips."""

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

_NUM_RESAMPLES = 10_000


def mcnemar_p(first: Bool[np.ndarray, " clips"], second: Bool[np.ndarray, " clips"]) -> float:
    """Return the two-sided p-value of McNemar's exact test: do both classifiers err equally often?

    Only clips on which they differ count; 1 if there are none.

    Args:
        first: Whether the first classifier is right on each clip.
        second: Whether the second one is.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated proportions.
    """
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_interval(
    first: Bool[np.ndarray, " clips"], second: Bool[np.ndarray, " clips"], *, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 percent percentile bootstrap interval of the second accuracy minus the first, over clips.

    A clip's difference is -1, 0 or 1, so drawing clips with replacement is drawing three counts, which is done here.

    Source: Efron 1979, Bootstrap methods.
    """
    total, differences = len(first), second.astype(int) - first.astype(int)
    shares = np.array([(differences == value).mean() for value in (-1, 0, 1)])
    drawn = np.random.default_rng(seed).multinomial(total, shares / shares.sum(), size=_NUM_RESAMPLES)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / total, (2.5, 97.5))
    return float(low), float(high)


__all__ = ["mcnemar_p", "paired_interval"]
