"""Arrays of flax modules as tensors in torch's layout and under other names.

Axes: D width, h heads, d width of a head, H and W pixels of a patch.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vidflow.errors import VidflowError

_PROJECTIONS = ("query", "key", "value")


def from_flax(arrays: Mapping[str, np.ndarray], *, words: Mapping[str, str], fused: str) -> dict[str, Tensor]:
    """Return every array as torch keeps it, in float32.

    Dense kernels are (in, out); those of queries, keys and values (D, h, d), which torch keeps in one tensor, and of
    what the heads attended to, `out`, (h, d, D). A kernel over one frame is (1, H, W, in, out).

    Args:
        arrays: By name, with `/` between modules.
        words: Our word for each word of a name that is another one; one that ends in `_` stands for a list of modules.
        fused: Name of the fused tensor, made from that of the attention and `weight` or `bias`.

    Raises:
        VidflowError: An array has fewer axes than its name says.
    """
    found: dict[str, Tensor] = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        least = 3 if path and leaf == "kernel" and path[-1] in (*_PROJECTIONS, "out") else 0
        if not path or np.ndim(array) < least:
            raise VidflowError(f"array {name} is {np.shape(array)}; wanted one of a flax module, as released")
        module = ".".join(_rename(word, words) for word in path)
        kind = "bias" if leaf == "bias" else "weight"
        found[f"{module}.{kind}"] = _in_torch_layout(path[-1], leaf, torch.tensor(array, dtype=torch.float32))
    for key in sorted(found):
        module, _, kind = key.rpartition(".query.")
        parts = [f"{module}.{part}.{kind}" for part in _PROJECTIONS]
        if module and all(part in found for part in parts):
            found[fused.format(module, kind)] = torch.cat([found.pop(part) for part in parts])
    return found


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
