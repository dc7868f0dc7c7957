"""Build a frozen encoder from its settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, assert_never

import torch

from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import check_name, create_vit
from vidflow.models.encoder.frozen import FrozenEncoder
from vidflow.models.encoder.hub import hub_file
from vidflow.models.encoder.loading import load_weights
from vidflow.models.encoder.merged_file import load_merged, read_record
from vidflow.models.encoder.rvm import RVM_MEAN, RVM_OPTIONS, RVM_STD, check_rvm_name
from vidflow.models.encoder.vit import TimmVit
from vidflow.models.reduction.build import Reducer
from vidflow.models.weights import random_seed, weights_kind

EncoderDtype = Literal["auto", "float32", "bfloat16", "float16"]


def build_encoder(
    *,
    name: str,
    weights: str,
    img_size: int,
    depths: Sequence[int] | None = None,
    normalize_depths: bool = True,
    device: str = "cpu",
    dtype: EncoderDtype = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    reduction: Reducer | None = None,
) -> FrozenEncoder:
    """Build a frozen encoder.

    Args:
        name: A timm vision transformer: AugReg, DeiT, DINOv2 (with or without registers), DINOv3, CLIP, SigLIP, MAE.
        weights: `hub`, `random:SEED`, or the path of a `.safetensors`, `.pt` or `.pth` checkpoint, or of a released
            `.npz` of RVM; or a file of merged adapters. RVM's image encoder is `vit_small_patch16_224`, or the base or
            large model of that name.
        img_size: Side of the square frames in pixels; a multiple of the patch size.
        depths: Blocks to tap, from 0; negative numbers count from the end, None is the last block.
        normalize_depths: Whether the model's final norm is applied to every tapped depth. A model that normalises
            only after pooling has no final norm, and its tokens stay raw.
        device: Where to run, such as `cpu`, `cuda` or `cuda:1`.
        dtype: Precision of weights and activations; `auto` is bfloat16 on CUDA and float32 elsewhere.
        mean: Mean per channel in [0, 1], for local weights whose normalisation is not timm's; None is timm's, or RVM's.
        std: Standard deviation per channel, likewise.
        reduction: A reducer that acts before or inside the encoder; reducers of cached tokens are refused.

    Raises:
        VidflowError: The model does not exist or is not a plain vision transformer, the size is no multiple of the
            patch size, a depth is out of range, the weights do not fit, the device is not available, or the reducer
            does not fit the encoder.
    """
    check_name(name)
    kind = weights_kind(weights)
    is_rvm = kind == "file" and Path(weights).suffix == ".npz"
    record = read_record(Path(weights)) if kind == "file" else None
    if is_rvm:
        check_rvm_name(name)
    # timm draws initial weights from the global generator even if they are then overwritten: fork it, so that the
    # caller's random numbers do not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(weights) if kind == "random" else 0)
        vit = create_vit(name, img_size, reduction, **(RVM_OPTIONS if is_rvm else {}))
    parts = None
    match kind:
        case "random":
            pass
        case "file" if record is not None:
            parts = load_merged(vit, Path(weights), record, name=name)
        case "file":
            load_weights(vit, Path(weights), name=name)
        case "hub":
            load_weights(vit, hub_file(name), name=name)
        case _:
            assert_never(kind)
    own_mean, own_std = (RVM_MEAN, RVM_STD) if is_rvm else _normalisation(vit)
    if record is not None:
        own_mean, own_std = record.mean, record.std
    target = resolve_device(device)
    return FrozenEncoder(
        vit=vit,
        name=name,
        weights=weights,
        img_size=img_size,
        depths=depths,
        normalize_depths=normalize_depths,
        device=target,
        dtype=resolve_dtype(dtype, target),
        mean=own_mean if mean is None else mean,
        std=own_std if std is None else std,
        reduction=reduction,
        parts=parts,
    )


def _normalisation(vit: TimmVit) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and standard deviation of a model's pretrained configuration in timm."""
    config = vit.pretrained_cfg
    assert isinstance(config, dict), type(config)
    return config["mean"], config["std"]


def resolve_device(device: str) -> torch.device:
    """Return the device of a setting.

    Raises:
        VidflowError: It is not there.
    """
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise VidflowError(f"encoder.device is {device!r}, but torch sees no CUDA device; use 'cpu'")
    return target


def resolve_dtype(dtype: EncoderDtype, device: torch.device) -> torch.dtype:
    """Return the precision of a setting on a device."""
    match dtype:
        case "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case _:
            assert_never(dtype)
