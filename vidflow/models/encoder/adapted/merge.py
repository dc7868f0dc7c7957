"""Fold trained adapters into the linear maps beside them, so that the result is a frozen encoder without adapters.

Source: re-parameterisation of ZeroI2V (Li et al., ECCV 2024, arXiv 2310.01324). With adapter(x) = M x + c, a map
W x + b behind it becomes W M x + (W c + b), and one before it M W x + (M b + c). Products are in float64 and are
rounded once.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidflow.config.schema import AdapterPlace
from vidflow.errors import VidflowError
from vidflow.models.encoder.adapted.adapter import LinearAdapter
from vidflow.models.encoder.adapted.encoder import AdaptedEncoder, rank_of
from vidflow.models.encoder.clip_parts import ClipParts
from vidflow.models.encoder.merged_file import MergedRecord, join_eva_biases, pack_merged
from vidflow.models.encoder.vit import TimmVit


def merge_adapted(encoder: AdaptedEncoder, *, trial: str) -> bytes:
    """Return a trained encoder as the contents of a `.safetensors` file, which `encoder.weights` takes.

    Args:
        encoder: The trained encoder, on weights in float32: the values of adapters are too small for half precision.
        trial: Key of the trial that trained it.

    Raises:
        VidflowError: The weights are in half precision, or are RVM's.
    """
    frozen = encoder.frozen
    if frozen.dtype in (torch.bfloat16, torch.float16):
        raise VidflowError(
            f"adapters are merged into weights in float32, got {frozen.dtype}; build the encoder with it"
        )
    if frozen.weights.endswith(".npz"):
        raise VidflowError(f"{frozen.weights}: adapters on RVM's image encoder cannot be merged into a timm checkpoint")
    record = MergedRecord(
        name=frozen.name,
        base_sha256=frozen.weights_sha256,
        trial=trial,
        scale=encoder.adaptation.scale,
        rank=rank_of(encoder.adaptation, frozen.embed_dim),
        offsets=encoder.offsets.by_head,
        first_block=encoder.offsets.first_block,
        num_frames=encoder.trained_frames,
        temporal_embedding=encoder.temporal_embedding is not None,
        interpolate_after=tuple(encoder.adaptation.interpolate_after),
        mean=frozen.mean,
        std=frozen.std,
    )
    return pack_merged(*fold_adapters(encoder), record)


@torch.no_grad()
def fold_adapters(encoder: AdaptedEncoder) -> tuple[TimmVit, ClipParts]:
    """Return a copy of the model with the adapters in its weights, and what joins the frames of a clip."""
    vit = copy.deepcopy(encoder.frozen.vit)
    for index, block in enumerate(vit.blocks):
        fold_block(block, encoder.adapters_of(index))
    if encoder.norm is not None:
        vit.norm = copy.deepcopy(encoder.norm).requires_grad_(False)
    embedding = encoder.temporal_embedding
    parts = ClipParts(
        offsets=encoder.offsets,
        embedding=None if embedding is None else embedding.detach().clone(),
        inti={int(after): copy.deepcopy(layer) for after, layer in encoder.inti_layers().items()},
    )
    return vit, parts


def fold_block(block: nn.Module, adapters: Mapping[AdapterPlace, LinearAdapter]) -> None:
    """Fold the adapters of one block into its maps; maps without bias get one."""
    module: Any = block
    for place, adapter in adapters.items():
        matrix, vector = adapter.matrix_and_vector()
        match place:
            case "attention_in":
                join_eva_biases(module.attn)
                names = ("qkv", "q_proj", "k_proj", "v_proj", "gate")
                readers = [each for name in names if isinstance(each := getattr(module.attn, name, None), nn.Linear)]
            case "mlp_in":
                readers = [each for name in ("fc1", "fc1_g", "fc1_x") if (each := getattr(module.mlp, name, None))]
            case "attention_out":
                _fold_behind(module.attn.proj, matrix, vector)
                continue
            case "mlp_out":
                _fold_behind(module.mlp.fc2, matrix, vector)
                continue
        for reader in readers:
            _fold_before(reader, matrix, vector)


def _fold_before(linear: nn.Linear, matrix: Tensor, vector: Tensor) -> None:
    """Fold an adapter into a map that reads its output."""
    weight = linear.weight.double()
    _set(linear, weight @ matrix, weight @ vector + _bias_of(linear))


def _fold_behind(linear: nn.Linear, matrix: Tensor, vector: Tensor) -> None:
    """Fold an adapter into the map whose output it reads."""
    _set(linear, matrix @ linear.weight.double(), matrix @ _bias_of(linear) + vector)


def _bias_of(linear: nn.Linear) -> Tensor:
    zeros = linear.weight.new_zeros(linear.out_features)
    return (zeros if linear.bias is None else linear.bias).double()


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    dtype = linear.weight.dtype
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


__all__ = ["fold_adapters", "fold_block", "merge_adapted"]
