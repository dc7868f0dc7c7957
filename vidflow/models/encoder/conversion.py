"""Convert published checkpoints to tensors of a timm model, and find tensors that the conversion loses.

timm's conversion silently drops tensors that it cannot use. A dropped tensor must not change the features.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.vit import TimmVit

Convert = Callable[[dict[str, Any], TimmVit], Mapping[str, Any]]

# Used only in pretraining, by a head, or by the language branch of BEiT-3; or computed from the size of the frames.
_UNREAD = re.compile(
    r"(^|\.)mask_token$"
    r"|^(projectors|local_cls_norm|lm_head)\.|(^|\.)pre_logits\.|^(module\.)?visual\.head\."
    r"|^beit3\.(text_embed\.|.*\.B\.)"
    r"|(^|\.)rope\.freqs_(cos|sin)$"
)
# Prefixes of the image encoder in a checkpoint of images and text.
_IMAGE_TOWERS = ("visual.", "module.visual.", "vision_encoder.")
# Resampling may skip some of these numbers.
_POSITIONS = re.compile(r"pos_embed|positional_embedding|embed_positions")
# Published periods are rounded to bfloat16, which has 8 bits.
_PERIODS_RTOL = 2**-7


def fit_to_model(vit: TimmVit, state: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Apply timm's own conversion of published formats, which also resamples the position embedding.

    Returns:
        The tensors under timm's names, and one line for each dropped tensor that changes the features. If the
        conversion fails, the checkpoint is returned unchanged.

    Raises:
        VidflowError: The checkpoint is of RADIO or of another patch size.
    """
    if "radio" in name:
        raise VidflowError(
            f"encoder.name is {name!r}: RADIO checkpoints resample unlike other models and are not offered"
        )
    wrappers = ("model_ema", "model", "module", "state_dict") if isinstance(vit, Eva) else ("model", "state_dict")
    state = _unwrapped(state, wrappers)
    # timm would also resample the patch projection, but another patch size is another model: refuse it.
    for key, patches in state.items():
        is_projection = key.endswith("patch_embed.proj.weight") and isinstance(patches, Tensor) and patches.ndim == 4
        if is_projection and patches.shape != vit.patch_embed.proj.weight.shape:
            raise VidflowError(
                f"the checkpoint's {key} is {tuple(patches.shape)}, but encoder {name!r} has "
                f"{tuple(vit.patch_embed.proj.weight.shape)}: these weights are of another architecture"
            )
    convert = _conversion(vit, name)
    try:
        state = _masked(state)
        # timm prints a line for every bias that it drops.
        with redirect_stdout(io.StringIO()):
            fitted = dict(convert(dict(state), vit))
            losses = list(_losses(vit, state, _dropped(convert, state, vit)))
    except (RuntimeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # A position embedding that fits no grid, or values that are no tensors: the caller lists all that does not fit.
        return state, []
    return fitted, losses


def _conversion(vit: TimmVit, name: str) -> Convert:
    """Choose timm's conversion as timm does."""
    if isinstance(vit, Eva):
        return eva.checkpoint_filter_fn
    if "flexi" in name:
        return partial(vision_transformer.checkpoint_filter_fn, interpolation="bilinear", antialias=False)
    return partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale="deit3" in name)


def _unwrapped(state: dict[str, Any], wrappers: tuple[str, ...]) -> dict[str, Any]:
    """Return the dictionary of weights inside a training's file, unwrapped as timm does."""
    for wrapper in wrappers:
        inner = state.get(wrapper)
        if isinstance(inner, dict) and all(isinstance(key, str) for key in inner):
            state = inner
    return state


def _masked(state: dict[str, Any]) -> dict[str, Any]:
    """Multiply biases by their masks, as DINOv3 does in every forward pass: the mask zeroes the bias of the keys."""
    masks = {key for key in state if key.endswith(".bias_mask")}
    return {
        key: value * state[f"{key}_mask"] if f"{key}_mask" in masks else value
        for key, value in state.items()
        if key not in masks
    }


def _dropped(convert: Convert, state: dict[str, Any], vit: TimmVit) -> dict[str, Bool[Tensor, "..."] | None]:
    """Return by name which numbers of a tensor reach no tensor of the model; None is all of them.

    The conversion depends on names and shapes, never on values. So it runs on zero tensors that take no memory, and the
    gradient shows which numbers reach the model.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            key: torch.zeros(()).expand(value.shape).requires_grad_()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        fitted = convert({**state, **leaves}, vit).values()
        reached = [value for value in fitted if isinstance(value, Tensor) and value.requires_grad]
        taken = set(map(id, reached))
        leaves = {key: leaf for key, leaf in leaves.items() if id(leaf) not in taken}
        if not leaves:
            return {}
        ones = [torch.ones(()).expand(value.shape) for value in reached]
        gradients = torch.autograd.grad(reached, list(leaves.values()), ones, allow_unused=True)
    return {
        key: None if gradient is None else gradient == 0
        for key, gradient in zip(leaves, gradients, strict=True)
        if gradient is None or (not _POSITIONS.search(key) and bool((gradient == 0).any()))
    }


def _losses(vit: TimmVit, state: dict[str, Any], dropped: dict[str, Bool[Tensor, "..."] | None]) -> Iterator[str]:
    """Yield one line for each tensor with dropped numbers that the features depend on."""
    towers = [tower for tower in _IMAGE_TOWERS if any(key.startswith(tower) for key in state)]
    for key, mask in dropped.items():
        is_elsewhere = bool(towers) and not key.startswith(tuple(towers))
        if is_elsewhere or _UNREAD.search(key):
            continue
        value = state[key]
        if key.endswith(".periods"):
            if not _is_near(value, getattr(getattr(vit, "rope", None), "periods", None)):
                yield f"{key} {tuple(value.shape)} is not what the model computes for its rotary embedding"
        elif bool((value if mask is None else value[mask]).count_nonzero()):
            what = "it" if mask is None else f"{int(mask.sum())} of its numbers"
            yield f"{key} {tuple(value.shape)} is not zero, but nothing in the model takes {what}"


def _is_near(periods: Tensor, computed: Tensor | None) -> bool:
    if computed is None or computed.shape != periods.shape:
        return False
    return torch.allclose(periods.to(computed), computed, rtol=_PERIODS_RTOL, atol=0)


__all__ = ["fit_to_model"]
