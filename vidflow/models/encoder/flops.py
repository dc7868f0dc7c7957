"""Count multiply-accumulates of a vision transformer whose tokens get fewer on the way.

Axes: L blocks, N tokens, P prefix tokens, D embedding width.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidflow.models.encoder.vit import TimmVit


@dataclass(frozen=True, slots=True, kw_only=True)
class VitShape:
    """The numbers that a transformer's cost depends on.

    Attributes:
        depth: Number of blocks.
        embed_dim: Width D.
        num_heads: Attention heads; matching compares keys of one head's width.
        attention_weights: Weights of a block's projections, one multiply-accumulate each per token: 4 D^2 as a rule.
        mlp_weights: Weights of a block's MLP: 8 D^2 as a rule, a third more with a gate.
        num_patches: Patches of an image, or tubelets of a clip.
        num_prefix: Class token and registers.
        patch_values: Values of a patch, such as 16 x 16 x 3.
    """

    depth: int
    embed_dim: int
    num_heads: int
    attention_weights: int
    mlp_weights: int
    num_patches: int
    num_prefix: int
    patch_values: int


def shape_of(vit: TimmVit) -> VitShape:
    """Read the numbers off a timm model."""
    block: Any = vit.blocks[0]
    projection: Any = vit.patch_embed.proj
    return VitShape(
        depth=len(vit.blocks),
        embed_dim=int(vit.embed_dim),
        num_heads=int(block.attn.num_heads),
        attention_weights=sum(weight.numel() for weight in block.attn.parameters() if weight.ndim == 2),
        mlp_weights=sum(weight.numel() for weight in block.mlp.parameters() if weight.ndim == 2),
        num_patches=int(vit.patch_embed.num_patches),
        num_prefix=int(vit.num_prefix_tokens),
        patch_values=projection.weight[0].numel(),
    )


def count_tokens(num_patches: int, merges: Sequence[int]) -> list[int]:
    """Return the patch tokens before the first block and after each; at most half of them go in one.

    Source: ToMe (Bolya et al., ICLR 2023), section 3.
    """
    counts = [num_patches]
    for num_merged in merges:
        counts.append(counts[-1] - min(num_merged, counts[-1] // 2))
    return counts


def count_macs(shape: VitShape, merges: Sequence[int] = ()) -> int:
    """Count multiply-accumulates of patch embedding, blocks and matching for one image.

    Attention runs on the tokens that enter a block, its MLP on those that are left. Norms, softmax, sorting and moving
    are not counted.

    Args:
        shape: The transformer.
        merges: Tokens wanted off in each block, the first ones if fewer than blocks; each is one matching.
    """
    counts = count_tokens(shape.num_patches, [*merges, *[0] * (shape.depth - len(merges))])
    total = shape.num_patches * shape.patch_values * shape.embed_dim
    for before, after in itertools.pairwise(counts):
        total += block_macs(shape, num_tokens=before + shape.num_prefix, num_left=after + shape.num_prefix)
        if after < before:
            total += matching_macs(before, channels=shape.embed_dim // shape.num_heads, num_prefix=shape.num_prefix)
    return total


def block_macs(shape: VitShape, *, num_tokens: int, num_left: int) -> int:
    """Count one block: projections, the two products of attention, the MLP."""
    attention = num_tokens * shape.attention_weights + 2 * num_tokens**2 * shape.embed_dim
    return attention + num_left * shape.mlp_weights


def matching_macs(num_patches: int, *, channels: int, num_prefix: int) -> int:
    """Count one bipartite matching: every token of one half against every token of the other."""
    first = num_prefix % 2
    return (num_patches - first + 1) // 2 * ((num_patches + first) // 2) * channels


__all__ = ["VitShape", "block_macs", "count_macs", "count_tokens", "matching_macs", "shape_of"]
