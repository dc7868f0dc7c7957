"""Residual blocks that several cores share: the two-layer MLP, stochastic depth, and attention within a frame.

Axes: B clips, T frames, N tokens of a frame, D width.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

DropUnit = Literal["clip", "frame"]
"""Whether stochastic depth drops whole clips, or each frame independently (as in the released training)."""


class Mlp(nn.Module):
    """Linear, GELU, linear, with dropout after both."""

    def __init__(
        self, embed_dim: int, *, ratio: int = 4, dropout: float = 0.0, gelu: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, ratio * embed_dim)
        self.fc2 = nn.Linear(ratio * embed_dim, embed_dim)
        self.dropout = dropout
        self.gelu = gelu

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Apply the MLP to the last axis."""
        hidden = functional.gelu(self.fc1(x), approximate=self.gelu)
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return functional.dropout(self.fc2(hidden), self.dropout, self.training)


class SpatialBlock(nn.Module):
    """Pre-norm attention among the tokens of each frame, then an MLP, both with stochastic depth.

    Source: Orlova et al. 2026 (arXiv 2605.19137), MMix and GMMix. Stochastic depth: Huang et al. 2016. Differs by
    default: a residual is dropped for a whole clip. If each frame drops it independently, frames of one clip pass
    through networks of different depth, and a recurrence sees that as motion. `drop_unit="frame"` is as published.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        drop_unit: DropUnit = "clip",
    ) -> None:
        super().__init__()
        self.sa_norm = nn.LayerNorm(embed_dim)
        self.sa_attn = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, dropout=dropout)
        self.drop_path = drop_path
        self.drop_unit = drop_unit

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Mix the tokens of every frame."""
        frames = self.sa_norm(x).flatten(0, 1)
        attended, _ = self.sa_attn(frames, frames, frames, need_weights=False)
        x = x + self._drop(attended.view_as(x))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, residual: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        if not self.training or self.drop_path == 0.0:
            return residual
        num_frames = residual.shape[1] if self.drop_unit == "frame" else 1
        keep = torch.rand(residual.shape[0], num_frames, 1, 1, device=residual.device) >= self.drop_path
        return residual * keep / (1.0 - self.drop_path)


def fitting_heads(width: int, *, most: int) -> int:
    """Return the largest number of heads up to `most` with an even width of at least 16 per head, or 1."""
    fitting = (heads for heads in range(most, 1, -1) if width % (2 * heads) == 0 and width // heads >= 16)
    return next(fitting, 1)
