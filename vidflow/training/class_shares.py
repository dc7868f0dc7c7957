"""A share of the training clips, with the same share of each class."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def take_share(
    indices: Int64[np.ndarray, " clips"], keys: Sequence[str], labels: Sequence[int], *, share: float, seed: int
) -> Int64[np.ndarray, " taken"]:
    """Return a share of each class's clips, at least one, in the order in which they are given.

    Which clips are taken depends on the seed and their keys alone. A smaller share is part of a larger one.

    Args:
        indices: Positions of the clips.
        keys: Key of the clip at each position.
        labels: Class of the clip at each position; clips without one count as a class.
        share: In (0, 1].
        seed: Seed of the draw.
    """
    if share == 1.0:
        return indices
    classes: dict[int, list[int]] = {}
    for index in indices.tolist():
        classes.setdefault(labels[index], []).append(index)
    taken = set()
    for each in classes.values():
        each.sort(key=lambda index: hashlib.sha256(f"{seed} {keys[index]}".encode()).digest())
        taken |= set(each[: math.ceil(share * len(each) - 1e-9)])
    return indices[[index in taken for index in indices.tolist()]]


__all__ = ["take_share"]
