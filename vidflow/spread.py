"""A few of many, taken evenly."""

import numpy as np
from jaxtyping import Int


def spread(count: int, most: int) -> Int[np.ndarray, " fewer"]:
    """Return at most so many of the places 0 to `count - 1`, each once, evenly from first to last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
