"""An adapter between the tokens of a frozen encoder and a core.

Axes: D width, R rank.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_INIT_STD = 0.02
_DROPOUT = 0.1


class TokenAdapter(nn.Module):
    """Add to each token a small MLP of it: x + up(drop(GELU(down x))). At the start it is the identity.

    Source: Gowda, Arnab and Huang 2024, Optimizing Factorized Encoder Models (ECCV 2024): a compact adapter between the
    frozen spatial features and the temporal transformer. Its form is not published; this is the linear adapter of
    ZeroI2V (Li et al. 2024) with GELU, which cannot be merged into other weights.
    """

    def __init__(self, embed_dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, rank)
        self.up = nn.Linear(rank, embed_dim)
        nn.init.trunc_normal_(self.down.weight, std=_INIT_STD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Adapt tokens; dropout acts in training mode only."""
        hidden = functional.dropout(functional.gelu(self.down(tokens)), _DROPOUT, self.training)
        adapted: Tensor = tokens + self.up(hidden)
        return adapted

    def macs(self, num_tokens: int) -> int:
        """Return the multiply-accumulates of some tokens."""
        return 2 * num_tokens * self.down.weight.numel()


__all__ = ["TokenAdapter"]
