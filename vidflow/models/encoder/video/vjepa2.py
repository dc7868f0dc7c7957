"""V-JEPA 2 in parts: transformers' model as the walks see it, and its rotary embedding at any positions.

Axes: B clips, h heads, S tokens, d width of a head, w width of the part of a head that one axis rotates.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.models.encoder.video.blocks import AttentionPart, Backbone, Block, separate_projections
from vidflow.models.encoder.video.depth import first_blocks

_BASE = 10000.0


def vjepa2_backbone(model: nn.Module, *, has_head: bool) -> Backbone:
    """Return the parts of a `VJEPA2Model` or a `VJEPA2ForVideoClassification`; the predictor goes.

    Raises:
        AttributeError: The library has other names.
    """
    outer: Any = model
    inner = outer.vjepa2 if has_head else outer
    inner.predictor = nn.Identity()  # pre-training's; no output of ours needs it
    blocks = tuple(_block(layer) for layer in inner.encoder.layer)

    def stock(pixels: Tensor, depth: int) -> Tensor:
        with first_blocks(inner.encoder, "layer", depth):
            tokens: Tensor = inner(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        return tokens

    def classify(tokens: Tensor) -> Mapping[str, Tensor]:
        return {"class": outer.classifier(outer.pooler(tokens))}

    return Backbone(
        model=model,
        num_prefix=0,
        embed=inner.encoder.embeddings,
        blocks=blocks,
        finish=inner.encoder.layernorm,
        classify=classify if has_head else None,
        stock=stock,
        rotate=rotate,
    )


def rotate(heads: Float[Tensor, "B h S d"], positions: Float[Tensor, "B S 3"]) -> Float[Tensor, "B h S d"]:
    """Apply the embedding of frame, row and column to a third of each head's channels; positions may be fractions.

    The two channels of a pair have different angles, so this is no rotation. The weights were trained with it.

    Source: V-JEPA 2 (Assran et al., 2025), released code.
    """
    width = 2 * (heads.shape[-1] // 3 // 2)
    frequencies = _BASE ** (-torch.arange(width // 2, device=heads.device, dtype=torch.float32) / (width / 2))
    parts = [
        _rotate_part(heads[..., axis * width : (axis + 1) * width], positions[:, None, :, axis, None] * frequencies)
        for axis in range(3)
    ]
    return torch.cat([*parts, heads[..., 3 * width :]], dim=-1)


def _rotate_part(part: Float[Tensor, "B h S w"], angles: Float[Tensor, "B 1 S half"]) -> Float[Tensor, "B h S w"]:
    angles = torch.cat([angles, angles], dim=-1)
    turned = torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)
    return part * angles.cos().to(part.dtype) + turned * angles.sin().to(part.dtype)


def _block(layer: Any) -> Block:
    attention = layer.attention
    project = separate_projections(
        attention.query, attention.key, attention.value, num_heads=attention.num_attention_heads
    )
    return Block(
        attention=AttentionPart(norm=layer.norm1, project=project, output=attention.proj),
        mlp_norm=layer.norm2,
        mlp=layer.mlp,
    )


__all__ = ["rotate", "vjepa2_backbone"]
