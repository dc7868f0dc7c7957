"""Mix the patch tokens of several depths of the frozen encoder into one set of tokens for the core.

Axes: B clips, T frames, K tapped depths, N patch tokens, P prefix tokens (class token, registers), D width.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DepthAdapter(nn.Module):
    """A residual MLP on the batch-normalised patch tokens of one depth."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, embed_dim))

    def forward(self, rows: Float[Tensor, "rows D"], chunk_rows: int | None) -> Float[Tensor, "rows D"]:
        """Normalise over all rows, then apply the MLP, with `chunk_rows` in chunks that are recomputed backward."""
        normed: Tensor = self.bn(rows)
        parts = [normed] if chunk_rows is None else torch.split(normed, chunk_rows)
        run = self.mlp if chunk_rows is None else partial(checkpoint, self.mlp, use_reentrant=False)
        return rows + torch.cat([run(part) for part in parts])


class DepthMixing(nn.Module):
    """Apply each depth's adapter to its patch tokens, average the depths, and put the prefix tokens in front.

    Batch norm uses all frames and patches of a call. So `chunk_frames` bounds memory without changing the result.

    Source: Orlova et al. 2026 (arXiv 2605.19137), multi-depth features: `X = mean_j(F_j + MLP_j(BN_j(F_j)))` over the
    normalised outputs of K = 4 blocks; prefix tokens are those of the last depth, without an adapter.
    """

    def __init__(self, embed_dim: int, num_depths: int, *, chunk_frames: int | None = None) -> None:
        """Build one adapter per depth; MLP activations of at most `chunk_frames` frames are in memory at once."""
        super().__init__()
        self.layers = nn.ModuleList(DepthAdapter(embed_dim) for _ in range(num_depths))
        self.chunk_frames = chunk_frames

    def forward(
        self, tokens: Float[Tensor, "B T K N D"], prefix: Float[Tensor, "B T P D"] | None
    ) -> Float[Tensor, "B T P+N D"]:
        """Mix.

        Args:
            tokens: Patch tokens of every tapped depth, shallow to deep, after the encoder's final norm.
            prefix: Class token and registers of the last depth, or None if there are none.

        Returns:
            The core's input tokens: prefix, then patches.
        """
        chunk_rows = None if self.chunk_frames is None else self.chunk_frames * tokens.shape[3]
        depths = tokens.unbind(2)
        rows = [layer(depth.flatten(0, 2), chunk_rows) for layer, depth in zip(self.layers, depths, strict=True)]
        mixed = torch.stack(rows).mean(0).view_as(depths[0])
        return join_prefix(mixed, prefix, mixed.dtype)


def join_prefix(
    patches: Float[Tensor, "B T N D"], prefix: Float[Tensor, "B T P D"] | None, dtype: torch.dtype
) -> Float[Tensor, "B T P+N D"]:
    """Cast both to `dtype` and put the prefix tokens, if any, in front of the patch tokens."""
    if prefix is None:
        return patches.to(dtype)
    num_prefix = prefix.shape[2]
    joined = patches.new_empty((*patches.shape[:2], num_prefix + patches.shape[2], patches.shape[3]), dtype=dtype)
    joined[:, :, :num_prefix] = prefix
    joined[:, :, num_prefix:] = patches
    return joined
