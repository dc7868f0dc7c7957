"""Classify a `weights` setting without torch."""

import re
from pathlib import Path
from typing import Literal

from vidflow.errors import VidflowError

WeightsKind = Literal["hub", "random", "file"]
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")


def weights_kind(weights: str) -> WeightsKind:
    """Say what a `weights` setting means: `hub`, `random:SEED` or the path of a checkpoint.

    Raises:
        VidflowError: It is none of the three, or the file does not exist.
    """
    if weights == "hub":
        return "hub"
    if re.fullmatch(r"random:\d+", weights):
        return "random"
    path = Path(weights)
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise VidflowError(
            f"encoder.weights is {weights!r}; wanted 'hub', 'random:SEED' with a whole number, "
            f"or the path of a checkpoint ending in {', '.join(CHECKPOINT_SUFFIXES)}"
        )
    if not path.is_file():
        raise VidflowError(f"encoder.weights is {weights!r}, but there is no such file (looked at {path.absolute()})")
    return "file"


def random_seed(weights: str) -> int:
    """Return the seed of a `random:SEED` setting."""
    return int(weights.removeprefix("random:"))


__all__ = ["CHECKPOINT_SUFFIXES", "WeightsKind", "random_seed", "weights_kind"]
