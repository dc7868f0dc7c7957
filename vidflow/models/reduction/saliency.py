"""vid-TLDR: merge tokens in the first blocks; tokens with high attention entropy, the background, weigh less.

Axes: B images, F frames of a sample, N patch tokens, S tokens of the sequence, h heads.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment
from vidflow.models.reduction.in_block import BlockReducer, BlockView, PositionPolicy
from vidflow.models.reduction.macs import VitShape, count_macs, count_tokens
from vidflow.models.reduction.matching import best_sources, match_tokens, merge_sources


def attention_saliency(attention: Float[Tensor, "B h N S"]) -> Float[Tensor, "B N"]:
    """Return the saliency of each token: 0 for the half with the flattest attention, up to 1 for the sharpest.

    Source: vid-TLDR (Choi et al., CVPR 2024), section 3.2. The published formula is 0/0 if all tokens have the same
    entropy; here all are then equally salient. It has 0 log 0 if a weight underflows; here this is 0.
    """
    negative_entropy = torch.special.xlogy(attention, attention).sum(-1).mean(1)
    low, high = negative_entropy.amin(1, keepdim=True), negative_entropy.amax(1, keepdim=True)
    spread = high - low
    alike = spread <= 1e-6 * high.abs()
    scaled = (negative_entropy - low) / torch.where(alike, 1.0, spread)
    above = (scaled - scaled.mean(1, keepdim=True)).clamp(min=0)
    peak = above.amax(1, keepdim=True)
    return torch.where(alike, 1.0, above / torch.where(alike, 1.0, peak))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSaliency(BlockReducer):
    """Merge tokens in the first blocks; salient tokens have more weight in the mean.

    Attributes:
        num_merged: Tokens merged in each of the first blocks.
        proportional_attention: Whether attention weights keys by their (fractional) sizes.
        positions: The position of a merged token in rotary embeddings.

    Source: vid-TLDR (Choi et al., CVPR 2024). Needs attention weights, which are computed in addition to the fused
    kernel in the reducing blocks.
    """

    num_merged: tuple[int, ...]
    proportional_attention: bool = True
    positions: PositionPolicy = "mean"

    def __post_init__(self) -> None:
        if not self.num_merged or any(number < 0 for number in self.num_merged):
            raise VidflowError(
                f"reducer 'vidtldr' has num_merged {list(self.num_merged)}; wanted a number for each first block"
            )

    def check(self, shape: VitShape, *, num_frames: int) -> None:  # noqa: ARG002
        """Check that there are no more numbers than blocks."""
        if len(self.num_merged) > shape.depth:
            raise VidflowError(
                f"reducer 'vidtldr' has num_merged for {len(self.num_merged)} blocks; the encoder has {shape.depth}"
            )

    def tokens_left(self, shape: VitShape) -> list[int]:
        """Return the patch tokens before the first block and after each."""
        return count_tokens(shape.num_patches, [*self.num_merged, *[0] * (shape.depth - len(self.num_merged))])

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:  # noqa: ARG002
        """Return the cost of the blocks, of comparing tokens, and of attention weights in the reducing blocks."""
        tokens = self.tokens_left(shape)[: num_blocks + 1]
        reducing = [before for before, after in itertools.pairwise(tokens) if after < before]
        attention = sum(before * (before + shape.num_prefix) * shape.embed_dim for before in reducing)
        return count_macs(shape, tokens, channels=shape.embed_dim) + attention

    def acts_at(self, index: int, *, depth: int, num_patches: int) -> bool:  # noqa: ARG002
        """Say whether a block merges tokens."""
        return index < len(self.num_merged) and self.num_merged[index] > 0

    def assign(self, view: BlockView) -> Assignment | None:
        """Merge by the similarity of the residual stream; a source's weight is its saliency."""
        first, num_merged = view.num_prefix % 2, min(self.num_merged[view.index], view.num_tokens // 2)
        if num_merged == 0:
            return None
        matching = match_tokens(view.tokens, first=first, valid=view.valid)
        sources = best_sources(matching, num_merged)
        step = merge_sources(matching, sources, num_merged=num_merged)
        saliency = attention_saliency(view.attention())
        weights = torch.ones_like(saliency)
        weights[:, first::2] = torch.where(sources, saliency[:, first::2], 1.0)
        return Assignment(row_of=step.row_of, owners=step.owners, counts=step.counts, weights=weights)


__all__ = ["BlockSaliency", "attention_saliency"]
