"""A linear adapter, which vanishes into the linear maps beside it.

Axes: D width, R rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_INIT_STD = 0.02


class LinearAdapter(nn.Module):
    """Add a trained linear map of low rank: x + scale (up(drop(down x))). At the start it is the identity.

    Source: linear adapter of ZeroI2V (Li et al., ECCV 2024, arXiv 2310.01324).
    """

    def __init__(self, embed_dim: int, rank: int, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(embed_dim, rank)
        self.drop = nn.Dropout(dropout)
        self.up = nn.Linear(rank, embed_dim)
        nn.init.trunc_normal_(self.down.weight, std=_INIT_STD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Adapt tokens; dropout acts in training mode only."""
        adapted: Tensor = tokens + self.scale * self.up(self.drop(self.down(tokens)))
        return adapted

    def matrix_and_vector(self) -> tuple[Float[Tensor, "D D"], Float[Tensor, " D"]]:
        """Return M and c with `adapter(x) = M x + c` in evaluation mode, in float64."""
        down, up = self.down.weight.double(), self.up.weight.double()
        matrix = torch.eye(up.shape[0], dtype=torch.float64, device=up.device) + self.scale * (up @ down)
        return matrix, self.scale * (up @ self.down.bias.double() + self.up.bias.double())


__all__ = ["LinearAdapter"]
