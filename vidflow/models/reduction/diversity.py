"""DivPrune: keep the tokens that are farthest from one another.

Axes: B samples, N tokens, K tokens kept, T frames, H and W the grid, D width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.models.reduction.assignment import Assignment, group_tokens, join_frames
from vidflow.models.reduction.bipartite import Scope
from vidflow.models.reduction.budgets import Budget


def most_diverse(tokens: Float[Tensor, "B N D"], *, num_kept: int) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B N"]]:
    """Choose tokens greedily so that the smallest distance among them is large.

    Returns:
        The chosen tokens in the order of choice, and for every token the most similar chosen token.

    Source: DivPrune (Alvar et al., CVPR 2025), algorithm 1 with cosine distance. Each choice depends on the previous
    choices, so this is a loop of K steps, each over all samples at once.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    isolation = distance.masked_fill(itself, torch.inf).amin(2)
    chosen = [isolation.argmax(1) if tokens.shape[1] > 1 else isolation.new_zeros(len(isolation), dtype=torch.int64)]
    nearest = distance.gather(1, chosen[0].view(-1, 1, 1).expand(-1, 1, tokens.shape[1])).squeeze(1)
    owner = chosen[0].unsqueeze(1).expand(-1, tokens.shape[1])
    taken = torch.zeros_like(nearest, dtype=torch.bool).scatter_(1, chosen[0].unsqueeze(1), True)
    for _ in range(num_kept - 1):
        newest = nearest.masked_fill(taken, -torch.inf).argmax(1)
        chosen.append(newest)
        to_newest = distance.gather(1, newest.view(-1, 1, 1).expand(-1, 1, tokens.shape[1])).squeeze(1)
        owner = torch.where(to_newest < nearest, newest.unsqueeze(1), owner)
        nearest = torch.minimum(nearest, to_newest)
        taken = taken.scatter(1, newest.unsqueeze(1), True)
    kept = torch.stack(chosen, dim=1)
    return kept, owner.scatter(1, kept, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostDiversity(Budget):
    """Keep the cached tokens that differ most from one another; each other token joins the most similar kept token.

    Attributes:
        scope: Among which tokens the kept ones are chosen.

    Source: DivPrune (Alvar et al., CVPR 2025).
    """

    scope: Scope = "frame"
    name: ClassVar[str] = "divprune"

    @property
    def is_even(self) -> bool:
        """Whether tokens are chosen per frame."""
        return self.scope == "frame"

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Choose tokens in each frame or clip."""
        num_frames, height, width = tokens.shape[1:4]
        frames = 1 if self.scope == "clip" else num_frames
        samples = tokens.reshape(tokens.shape[0] * frames, -1, tokens.shape[-1])
        num_kept = self.num_left(height * width, num_frames // frames)
        kept, owners = most_diverse(samples, num_kept=num_kept)
        is_owner = torch.zeros_like(owners, dtype=torch.bool).scatter_(1, kept, True)
        return join_frames(group_tokens(owners, is_owner, combine="owner", num_rows=num_kept), frames)


__all__ = ["PostDiversity", "most_diverse"]
