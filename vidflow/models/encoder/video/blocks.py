"""A neutral view of video transformers: what the walks need of a model, whatever its library calls it.

Axes: B samples, S tokens of a sequence, D width, h heads, d width of a head, T frames, Y and X pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

Heads = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPart:
    """One attention of a block.

    Attributes:
        norm: The norm before it.
        project: Turns normed tokens into queries, keys and values of heads, before any rotation.
        output: Turns the heads' concatenated output into what is added to the residual stream.
    """

    norm: nn.Module
    project: Callable[[Float[Tensor, "B S D"]], Heads]
    output: Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S D"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of a video transformer.

    Attributes:
        attention: Attention over space, or over space and time.
        mlp_norm: The norm before the MLP.
        mlp: The MLP, without its residual.
        temporal: Attention over time that runs first; divided attention only.
        trajectory: Projects points of trajectories to queries, and to keys and values; trajectory attention only.
    """

    attention: AttentionPart
    mlp_norm: nn.Module
    mlp: Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S D"]]
    temporal: AttentionPart | None = None
    trajectory: Callable[[Tensor, Tensor], Heads] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A video transformer in parts.

    Attributes:
        model: The module that holds all weights.
        num_prefix: Class tokens in front of the patches, P.
        embed: Turns pixels into prefix and patch tokens with positions, frame by frame and each in raster order.
        blocks: The blocks.
        finish: The norm after the last block.
        classify: Turns finished tokens into logits by head, or None for a model without a classifier.
        stock: The library's own forward through the first blocks only: finished tokens in our order. None if the model
            is our own.
        rotate: Rotates queries or keys by the frame, row and column of each token; None without rotary embedding.
    """

    model: nn.Module
    num_prefix: int
    embed: Callable[[Float[Tensor, "B T 3 Y X"]], Float[Tensor, "B S D"]]
    blocks: Sequence[Block]
    finish: Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S D"]]
    classify: Callable[[Float[Tensor, "B S D"]], Mapping[str, Tensor]] | None
    stock: Callable[[Float[Tensor, "B T 3 Y X"], int], Float[Tensor, "B S D"]] | None
    rotate: Callable[[Float[Tensor, "B h S d"], Float[Tensor, "B S 3"]], Float[Tensor, "B h S d"]] | None = None


def split_heads(tokens: Float[Tensor, "B S D"], num_heads: int) -> Float[Tensor, "B h S d"]:
    """Cut the channels into heads."""
    heads: Tensor = tokens.unflatten(2, (num_heads, -1))
    return heads.transpose(1, 2)


def separate_projections(
    query: nn.Module, key: nn.Module, value: nn.Module, *, num_heads: int
) -> Callable[[Float[Tensor, "B S D"]], Heads]:
    """Return the function that projects tokens to heads with three layers."""

    def project(tokens: Tensor) -> Heads:
        return (
            split_heads(query(tokens), num_heads),
            split_heads(key(tokens), num_heads),
            split_heads(value(tokens), num_heads),
        )

    return project


def join_heads(heads: Float[Tensor, "B h S d"]) -> Float[Tensor, "B S D"]:
    """Put the channels of all heads side by side."""
    return heads.transpose(1, 2).flatten(2)


__all__ = ["AttentionPart", "Backbone", "Block", "Heads", "join_heads", "separate_projections", "split_heads"]
