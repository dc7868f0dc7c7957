"""VideoMAE in parts: transformers' model as the walks see it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vidflow.models.encoder.video.blocks import AttentionPart, Backbone, Block, separate_projections
from vidflow.models.encoder.video.depth import first_blocks


def videomae_backbone(model: nn.Module, *, has_head: bool) -> Backbone:
    """Return the parts of a `VideoMAEModel` or a `VideoMAEForVideoClassification`.

    There is no class token. A model for mean pooling has no norm after its last block; its head takes the plain mean of
    the tokens, however many patches each stands for, as the published runs do.

    Raises:
        AttributeError: The library has other names.
    """
    outer: Any = model
    inner = outer.videomae if has_head else outer
    blocks = tuple(_block(layer) for layer in inner.encoder.layer)

    def embed(pixels: Tensor) -> Tensor:
        tokens: Tensor = inner.embeddings(pixels, None)
        return tokens

    def stock(pixels: Tensor, depth: int) -> Tensor:
        with first_blocks(inner.encoder, "layer", depth):
            tokens: Tensor = inner(pixels).last_hidden_state
        return tokens

    def classify(tokens: Tensor) -> Mapping[str, Tensor]:
        pooled = tokens[:, 0] if outer.fc_norm is None else outer.fc_norm(tokens.mean(1))
        return {"class": outer.classifier(pooled)}

    return Backbone(
        model=model,
        num_prefix=0,
        embed=embed,
        blocks=blocks,
        finish=nn.Identity() if inner.layernorm is None else inner.layernorm,
        classify=classify if has_head else None,
        stock=stock,
    )


def _block(layer: Any) -> Block:
    attention = layer.attention.attention
    project = separate_projections(
        attention.query, attention.key, attention.value, num_heads=attention.num_attention_heads
    )
    return Block(
        attention=AttentionPart(norm=layer.layernorm_before, project=project, output=layer.attention.output.dense),
        mlp_norm=layer.layernorm_after,
        mlp=nn.Sequential(layer.intermediate, layer.output.dense),
    )


__all__ = ["videomae_backbone"]
