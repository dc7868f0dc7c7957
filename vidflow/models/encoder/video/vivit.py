"""ViViT in parts: transformers' model as the walks see it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vidflow.models.encoder.video.blocks import AttentionPart, Backbone, Block, separate_projections
from vidflow.models.encoder.video.depth import first_blocks


def vivit_backbone(model: nn.Module, *, has_head: bool) -> Backbone:
    """Return the parts of a `VivitModel` or a `VivitForVideoClassification`.

    Raises:
        AttributeError: The library has other names.
    """
    outer: Any = model
    inner = outer.vivit if has_head else outer
    blocks = tuple(_block(layer) for layer in inner.layers)

    def stock(pixels: Tensor, depth: int) -> Tensor:
        with first_blocks(inner, "layers", depth):
            tokens: Tensor = inner(pixels).last_hidden_state
        return tokens

    def classify(tokens: Tensor) -> Mapping[str, Tensor]:
        return {"class": outer.classifier(tokens[:, 0])}

    return Backbone(
        model=model,
        num_prefix=1,
        embed=inner.embeddings,
        blocks=blocks,
        finish=inner.layernorm,
        classify=classify if has_head else None,
        stock=stock,
    )


def _block(layer: Any) -> Block:
    attention = layer.attention
    project = separate_projections(
        attention.q_proj, attention.k_proj, attention.v_proj, num_heads=attention.num_attention_heads
    )
    return Block(
        attention=AttentionPart(norm=layer.layernorm_before, project=project, output=attention.o_proj),
        mlp_norm=layer.layernorm_after,
        mlp=layer.mlp,
    )


__all__ = ["vivit_backbone"]
