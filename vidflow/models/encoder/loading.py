"""Load a checkpoint into an encoder strictly."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vidflow.errors import VidflowError
from vidflow.models.encoder.conversion import fit_to_model
from vidflow.models.encoder.rvm import read_rvm
from vidflow.models.encoder.vit import TimmVit
from vidflow.models.tensor_checks import tensor_faults

# A frozen encoder has no classifier and no pooling head, so those of a checkpoint are ignored.
_HEAD_PREFIXES = ("head.", "head_dist.", "attn_pool.")
# What torch and safetensors raise for damaged files.
_DAMAGE = (
    pickle.UnpicklingError, SafetensorError, struct.error, AssertionError, AttributeError, EOFError, LookupError,
    OSError, OverflowError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def load_weights(vit: TimmVit, path: Path, *, name: str) -> None:
    """Load a checkpoint strictly; its position embedding is resampled if the grid differs, as in timm.

    Args:
        vit: The model.
        path: The checkpoint; an `.npz` is one of RVM.
        name: The model's name, for messages.

    Raises:
        VidflowError: The file cannot be read, or tensors do not fit; the message lists all of them, and the model is
            unchanged. A tensor does not fit if it is missing, unexpected, of another shape or kind of number, without
            values (meta, sparse, quantized), not finite, in another's memory, or if it changes the features but has
            no place in the model.
    """
    found = read_rvm(path, vit, name=name) if path.suffix == ".npz" else read_checkpoint(path)
    load_tensors(vit, found, path=path, name=name)


def load_tensors(
    vit: TimmVit, found: dict[str, Any], *, path: Path, name: str, kept: Mapping[str, Any] | None = None
) -> None:
    """Load what a file holds, as `load_weights` does.

    Args:
        vit: The model.
        found: The tensors of the file.
        path: The file, for messages.
        name: The model's name, for messages.
        kept: Tensors under timm's names that timm's conversion does not know.

    Raises:
        VidflowError: As for `load_weights`.
    """
    fitted, problems = fit_to_model(vit, found, name)
    fitted = {**fitted, **(kept or {})}
    state = {key: value for key, value in fitted.items() if _is_wanted(key)}
    if others := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise VidflowError(f"{path} holds {', '.join(others)}, which are not tensors; wanted a model's tensors by name")
    wanted = {key: value for key, value in vit.state_dict().items() if _is_wanted(key)}
    problems += [f"missing {key} {tuple(wanted[key].shape)}" for key in sorted(wanted.keys() - state.keys())]
    problems += [f"unexpected {key} {tuple(state[key].shape)}" for key in sorted(state.keys() - wanted.keys())]
    problems += tensor_faults({key: state[key] for key in sorted(state.keys() & wanted.keys())}, wanted)
    if problems:
        listed = "\n  ".join([*problems, *_better_name(name, problems)])
        raise VidflowError(f"{path} does not fit encoder {name!r}; {len(problems)} tensors differ:\n  {listed}")
    vit.load_state_dict(state, strict=False)


def load_strictly(model: nn.Module, found: Mapping[str, Any], *, path: Path, name: str) -> None:
    """Load the state dict of a video transformer; its names and shapes must be those of the model.

    Args:
        model: The model.
        found: What the file holds.
        path: The file, for messages.
        name: The model's name, for messages.

    Raises:
        VidflowError: Tensors do not fit; the message lists all of them, and the model is unchanged.
    """
    wanted = model.state_dict()
    problems = [f"missing {key}" for key in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {key}" for key in sorted(found.keys() - wanted.keys())]
    problems += tensor_faults({key: value for key, value in found.items() if key in wanted}, wanted)
    if problems:
        listed = "\n  ".join(problems)
        raise VidflowError(
            f"{path} does not fit a {name} of encoder.size and encoder.settings; {len(problems)} tensors differ:\n"
            f"  {listed}"
        )
    model.load_state_dict(found)


def _is_wanted(key: str) -> bool:
    return not key.startswith(_HEAD_PREFIXES)


def _better_name(name: str, problems: list[str]) -> list[str]:
    """Suggest the model with biases of queries and values if this one lacks them: timm has DINOv3 in both forms."""
    variant = f"{name.partition('.')[0]}_qkvb"
    lacks_biases = any(".attn.qkv.bias " in problem and "is not zero" in problem for problem in problems)
    return [f"encoder.name {variant!r} has these biases"] if lacks_biases and timm.is_model(variant) else []


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of tensors by name; nothing else in it is executed.

    Raises:
        VidflowError: It cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = dict(torch.load(path, map_location="cpu", weights_only=True))
        if others := [key for key in found if not isinstance(key, str)]:
            raise ValueError(f"got the key {others[0]!r}, wanted names")
    except _DAMAGE as error:
        raise VidflowError(
            f"{path} cannot be read as a checkpoint of tensors: {error or type(error).__name__}"
        ) from error
    return found
