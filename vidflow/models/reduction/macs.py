"""Count multiply-accumulates of a vision transformer with token reduction.

Axes: N patch tokens, P prefix tokens, D embedding width.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VitShape:
    """The numbers of a transformer that a reducer's settings must fit, and that costs depend on.

    Attributes:
        depth: Number of blocks.
        embed_dim: Width D.
        num_heads: Attention heads; matching compares keys of one head's width.
        attention_weights: Weights of a block's projections, one multiply-accumulate each per token: usually 4 D^2.
        mlp_weights: Weights of a block's MLP: usually 8 D^2, a third more with a gate.
        grid: Patches per column and per row of an image.
        num_prefix: Class token and registers.
        patch_values: Values of a patch, such as 16 x 16 x 3.
        scopes: Groups of tokens that the reducers in its blocks can match.
    """

    depth: int
    embed_dim: int
    num_heads: int
    attention_weights: int
    mlp_weights: int
    grid: tuple[int, int]
    num_prefix: int
    patch_values: int
    scopes: tuple[str, ...] = ("frame",)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return math.prod(self.grid)


def count_tokens(num_patches: int, merges: Sequence[int]) -> list[int]:
    """Return the number of patch tokens before the first block and after each; a block loses at most half of them."""
    counts = [num_patches]
    for num_merged in merges:
        counts.append(counts[-1] - min(num_merged, counts[-1] // 2))
    return counts


def count_macs(shape: VitShape, tokens: Sequence[int], *, channels: int = 0) -> int:
    """Count multiply-accumulates of patch embedding, blocks and matching for one image.

    Attention runs on the tokens that enter a block, its MLP on those that remain. Norms, softmax, sorting and copying
    are not counted.

    Args:
        shape: The transformer.
        tokens: Patch tokens before the first block and after each block that runs.
        channels: Width of the vectors that are matched in every block that loses tokens; 0 if nothing is matched.
    """
    total = shape.num_patches * shape.patch_values * shape.embed_dim
    for before, after in itertools.pairwise(tokens):
        total += _block_macs(shape, num_tokens=before + shape.num_prefix, num_left=after + shape.num_prefix)
        if after < before:
            total += _matching_macs(before, channels=channels, num_prefix=shape.num_prefix)
    return total


def _block_macs(shape: VitShape, *, num_tokens: int, num_left: int) -> int:
    """Count one block: projections, the two products of attention, the MLP."""
    attention = num_tokens * shape.attention_weights + 2 * num_tokens**2 * shape.embed_dim
    return attention + num_left * shape.mlp_weights


def _matching_macs(num_patches: int, *, channels: int, num_prefix: int) -> int:
    """Count one bipartite matching: every token of one half against every token of the other."""
    first = num_prefix % 2
    return (num_patches - first + 1) // 2 * ((num_patches + first) // 2) * channels


__all__ = ["VitShape", "count_macs", "count_tokens"]
