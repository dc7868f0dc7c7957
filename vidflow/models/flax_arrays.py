"""Turn arrays of flax modules into tensors with torch's layout and other names.

Axes: D width, h heads, d width of a head, H and W pixels of a patch.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vidflow.errors import VidflowError

_PROJECTIONS = ("query", "key", "value")


def from_flax(arrays: Mapping[str, np.ndarray], *, words: Mapping[str, str], fused: str) -> dict[str, Tensor]:
    """Return every array in torch's layout and in float32.

    A dense kernel in flax is (in, out). The kernels of queries, keys and values are (D, h, d); torch fuses these three
    into one tensor. The output projection of attention, `out`, is (h, d, D). A kernel over one frame is
    (1, H, W, in, out).

    Args:
        arrays: By name, with `/` between modules.
        words: Our word for each word of a name, where they differ; a word that ends in `_` names a list of modules.
        fused: Name of the fused tensor, a format string for the attention's name and `weight` or `bias`.

    Raises:
        VidflowError: An array does not have the axes that its name requires, is not of floating-point numbers, or is
            there twice; or queries, keys and values of an attention differ in shape.
    """
    found: dict[str, Tensor] = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        if not path or not _is_flax(path[-1], leaf, array):
            raise VidflowError(
                f"array {name} is {np.shape(array)} {np.asarray(array).dtype}; wanted one of a flax module, as released"
            )
        module = ".".join(_rename(word, words) for word in path)
        key = f"{module}.{'bias' if leaf == 'bias' else 'weight'}"
        if key in found:
            raise VidflowError(f"array {name} is also there under the name {key}; leave out one of them")
        found[key] = _in_torch_layout(path[-1], leaf, torch.tensor(array, dtype=torch.float32))
    for key in sorted(found):
        module, _, kind = key.rpartition(".query.")
        parts = [f"{module}.{part}.{kind}" for part in _PROJECTIONS]
        if module and all(part in found for part in parts):
            if len({found[part].shape for part in parts}) > 1:
                shapes = ", ".join(str(tuple(found[part].shape)) for part in parts)
                raise VidflowError(f"{', '.join(parts)} are {shapes}; wanted three of one shape")
            found[fused.format(module, kind)] = torch.cat([found.pop(part) for part in parts])
    return found


def _is_flax(module: str, leaf: str, array: np.ndarray) -> bool:
    """Whether an array is of floating-point numbers and has the number of axes that its name requires."""
    if np.asarray(array).dtype.kind != "f":
        return False
    if leaf != "kernel":
        return True
    if module in (*_PROJECTIONS, "out"):
        return np.ndim(array) == 3
    return np.ndim(array) == 2 or (np.ndim(array) == 5 and np.shape(array)[0] == 1)


def _rename(word: str, words: Mapping[str, str]) -> str:
    stem, underscore, number = word.rpartition("_")
    if f"{stem}{underscore}" in words:
        return f"{words[stem + underscore]}.{number}"
    return words.get(word, word)


def _in_torch_layout(module: str, leaf: str, array: Tensor) -> Tensor:
    match module, leaf:
        case (name, "bias") if name in _PROJECTIONS:
            return array.flatten()
        case (name, "kernel") if name in _PROJECTIONS:
            return array.flatten(1).t()
        case ("out", "kernel"):
            return array.flatten(0, 1).t()
        case (_, "kernel") if array.ndim == 5:
            return array.squeeze(0).permute(3, 2, 0, 1)
        case (_, "kernel"):
            return array.t()
        case _:
            return array
