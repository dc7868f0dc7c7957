"""Classify a `weights` setting without torch."""

import json
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

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


def check_weights(weights: str) -> None:
    """Check that a file of weights can be opened and has the form of its kind; its tensors are not read.

    Raises:
        VidflowError: It cannot, or it was cut short.
    """
    if weights_kind(weights) != "file":
        return
    path = Path(weights)
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                _check_safetensors(file.read(8), file, path.stat().st_size)
            elif not zipfile.is_zipfile(file) and (path.suffix == ".npz" or not path.stat().st_size):
                raise ValueError("not an archive of arrays")
    except OSError as error:
        raise VidflowError(f"encoder.weights: {path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise VidflowError(
            f"encoder.weights: {path} cannot be read as a checkpoint of tensors: {error}; copy or download it again"
        ) from error


def _check_safetensors(start: bytes, file: BinaryIO, num_bytes: int) -> None:
    """Compare the size of a .safetensors file with the end of its last tensor.

    Source: https://huggingface.co/docs/safetensors, Format: the size of the header in 8 bytes, the header in JSON,
    the data.
    """
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= num_bytes - 8:
        raise ValueError("it has no header")
    tensors = json.loads(file.read(size))
    ends = [each["data_offsets"][1] for name, each in tensors.items() if name != "__metadata__"]
    if (wanted := 8 + size + max(ends, default=0)) != num_bytes:
        raise ValueError(f"it has {num_bytes} bytes, wanted {wanted}")


def random_seed(weights: str) -> int:
    """Return the seed of a `random:SEED` setting."""
    return int(weights.removeprefix("random:"))


__all__ = ["CHECKPOINT_SUFFIXES", "WeightsKind", "check_weights", "random_seed", "weights_kind"]
