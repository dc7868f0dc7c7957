"""Published formats of checkpoints as tensors of a timm model, and what of a checkpoint has no place in the model.

timm's conversion leaves out what it knows nothing to do with. What it leaves out must not change the features.
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

# Read only while pretraining, by a head, or by the language branch of BEiT-3; or computed for the size of the frames.
_UNREAD = re.compile(
    r"(^|\.)mask_token$"
    r"|^(projectors|local_cls_norm|lm_head)\.|(^|\.)pre_logits\.|^(module\.)?visual\.head\."
    r"|^beit3\.(text_embed\.|.*\.B\.)"
    r"|(^|\.)rope\.freqs_(cos|sin)$"
)
# Where a checkpoint of images and text has its image encoder.
_IMAGE_TOWERS = ("visual.", "module.visual.", "vision_encoder.")
# Resampling may pass over some of these numbers.
_POSITIONS = re.compile(r"pos_embed|positional_embedding|embed_positions")
# Published periods are rounded to bfloat16, which has 8 bits.
_PERIODS_RTOL = 2**-7


def fit_to_model(vit: TimmVit, state: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Apply timm's own conversion of published formats, which also resamples the position embedding.

    Returns:
        The tensors under timm's names, and what is wrong with those that timm leaves out, one line each. What cannot
        be converted is returned as it is.

    Raises:
        VidflowError: The checkpoint is of RADIO or of another patch size.
    """
    if "radio" in name:
        raise VidflowError(
            f"encoder.name is {name!r}: RADIO checkpoints resample unlike other models and are not offered"
        )
    wrappers = ("model_ema", "model", "module", "state_dict") if isinstance(vit, Eva) else ("model", "state_dict")
    state = _unwrapped(state, wrappers)
    # timm would also resample the patch projection; another patch size is another model, so that is refused.
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
        # A position embedding that no grid explains, or no tensors: unconverted, the caller lists it with all the rest.
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
    """Take off the dictionaries that timm takes off: a training's file has more than the model in it."""
    for wrapper in wrappers:
        inner = state.get(wrapper)
        if isinstance(inner, dict) and all(isinstance(key, str) for key in inner):
            state = inner
    return state


def _masked(state: dict[str, Any]) -> dict[str, Any]:
    """Multiply biases by their masks, as DINOv3 does in every forward pass: a mask takes the bias of the keys away."""
    masks = {key for key in state if key.endswith(".bias_mask")}
    return {
        key: value * state[f"{key}_mask"] if f"{key}_mask" in masks else value
        for key, value in state.items()
        if key not in masks
    }


def _dropped(convert: Convert, state: dict[str, Any], vit: TimmVit) -> dict[str, Bool[Tensor, "..."] | None]:
    """Return by name which numbers of a tensor reach no tensor of the model; None is all of them.

    The conversion goes by names and shapes, never by values. So it is run on stand-ins without memory, through which
    a gradient shows what became of every number.
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
    """Say which of the numbers that are dropped the features depend on."""
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
