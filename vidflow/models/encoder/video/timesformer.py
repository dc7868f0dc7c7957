"""TimeSformer in parts: transformers' model as the walks see it, with tokens frame by frame."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidflow.errors import VidflowError
from vidflow.models.encoder.video.blocks import AttentionPart, Backbone, Block, Heads
from vidflow.models.encoder.video.depth import first_blocks


def timesformer_backbone(model: nn.Module, *, has_head: bool) -> Backbone:
    """Return the parts of a `TimesformerModel` or a `TimesformerForVideoClassification`.

    Raises:
        AttributeError: The library has other names.
        VidflowError: The model has another kind of attention than the divided one.
    """
    outer: Any = model
    kind = outer.config.attention_type
    if kind != "divided_space_time":
        raise VidflowError(f"timesformer has attention_type {kind!r}; wanted 'divided_space_time'")
    inner = outer.timesformer if has_head else outer
    num_frames = int(outer.config.num_frames)
    blocks = tuple(_block(layer) for layer in inner.encoder.layer)

    def embed(pixels: Tensor) -> Tensor:
        return frame_by_frame(inner.embeddings(pixels), num_frames)

    def stock(pixels: Tensor, depth: int) -> Tensor:
        with first_blocks(inner.encoder, "layer", depth):
            return frame_by_frame(inner(pixels).last_hidden_state, num_frames)

    def classify(tokens: Tensor) -> Mapping[str, Tensor]:
        return {"class": outer.classifier(tokens[:, 0])}

    return Backbone(
        model=model,
        num_prefix=1,
        embed=embed,
        blocks=blocks,
        finish=inner.layernorm,
        classify=classify if has_head else None,
        stock=stock,
    )


def frame_by_frame(tokens: Tensor, num_frames: int) -> Tensor:
    """Reorder the patches of [class token, all frames of the first patch, of the second, ...]."""
    patches = tokens[:, 1:].unflatten(1, (-1, num_frames)).transpose(1, 2).flatten(1, 2)
    return torch.cat([tokens[:, :1], patches], dim=1)


def _block(layer: Any) -> Block:
    temporal = layer.temporal_attention
    return Block(
        attention=AttentionPart(
            norm=layer.layernorm_before,
            project=_projection(layer.attention.attention),
            output=layer.attention.output.dense,
        ),
        temporal=AttentionPart(
            norm=layer.temporal_layernorm,
            project=_projection(temporal.attention),
            output=nn.Sequential(temporal.output.dense, layer.temporal_dense),
        ),
        mlp_norm=layer.layernorm_after,
        mlp=nn.Sequential(layer.intermediate, layer.output.dense),
    )


def _projection(attention: Any) -> Callable[[Tensor], Heads]:
    def project(tokens: Tensor) -> Heads:
        joint = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))
        queries, keys, values = joint.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    return project


__all__ = ["frame_by_frame", "timesformer_backbone"]
