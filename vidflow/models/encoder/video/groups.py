"""Which tokens of a clip are matched with one another: cut a clip's tokens into groups, and join them again.

Axes: B clips, n patch tokens of a clip, G = B x F groups of N tokens (one per clip, or one per frame or stride).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from vidflow.models.reduction.bipartite import GroupScope


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of a scope.

    Attributes:
        scope: Which tokens are matched.
        num_frames: Output frames F.
    """

    scope: GroupScope
    num_frames: int

    @property
    def per_clip(self) -> int:
        """Number of groups in a clip."""
        return 1 if self.scope == "clip" else self.num_frames

    @property
    def frames_per_plan(self) -> int:
        """Number of groups that share an assignment."""
        return self.num_frames if self.scope == "tube" else 1

    def split(self, values: Shaped[Tensor, "B n *rest"]) -> Shaped[Tensor, "G N *rest"]:
        """Cut into groups, those of one clip after another."""
        is_stride = self.scope == "stride"
        cut: Tensor = values.unflatten(1, (-1, self.num_frames) if is_stride else (self.per_clip, -1))
        return (cut.transpose(1, 2) if is_stride else cut).flatten(0, 1)

    def join(self, values: Shaped[Tensor, "G N *rest"]) -> Shaped[Tensor, "B n *rest"]:
        """Undo `split`; the groups may have become smaller."""
        by_clip: Tensor = values.unflatten(0, (-1, self.per_clip))
        return by_clip.transpose(1, 2).flatten(1, 2) if self.scope == "stride" else by_clip.flatten(1, 2)

    def join_rows(self, rows: Int[Tensor, "G N"], num_rows: int) -> Int[Tensor, "B n"]:
        """Turn rows within groups of `num_rows` into rows of the joined clip; -1 stays."""
        group = torch.arange(rows.shape[0], device=rows.device).unsqueeze(1) % self.per_clip
        places: Any = rows * self.per_clip + group if self.scope == "stride" else group * num_rows + rows
        return self.join(torch.where(rows < 0, -1, places))

    def seeds(self, seeds: Int[Tensor, " B"]) -> Int[Tensor, " plans"]:
        """Return a seed for each assignment, so that the groups of a clip draw different numbers."""
        if self.frames_per_plan > 1 or self.per_clip == 1:
            return seeds
        return (seeds.unsqueeze(1) + torch.arange(self.per_clip, device=seeds.device)).flatten()


__all__ = ["Groups"]
