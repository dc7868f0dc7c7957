"""Density-peak clustering: centres are dense and far from denser tokens; other tokens join their nearest centre.

Axes: B samples, N tokens, T frames, H and W the grid, D width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment, group_tokens, join_frames
from vidflow.models.reduction.budgets import Budget
from vidflow.models.reduction.macs import VitShape


def cluster_owners(tokens: Float[Tensor, "B N D"], *, num_clusters: int, num_neighbours: int) -> Int[Tensor, "B N"]:
    """Return for every token the centre of its cluster; a centre's index is its own.

    Args:
        tokens: Tokens to cluster.
        num_clusters: Number of clusters, 1 to N.
        num_neighbours: Number of nearest tokens, itself included, from which a token's density is computed.

    Source: DPC-KNN (Du, Ding and Jia, 2016), with the densities of TCFormer that PruneVid (ACL Findings 2025), FastVID
    (NeurIPS 2025) and HoliTom (NeurIPS 2025) share. They break ties of density by noise; here the earlier token counts
    as denser, so nothing is random.
    """
    num_tokens, width = tokens.shape[1:]
    distance = torch.cdist(tokens.float(), tokens.float(), compute_mode="donot_use_mm_for_euclid_dist") / width**0.5
    nearest = distance.topk(min(num_neighbours, num_tokens), dim=2, largest=False).values
    density = (-nearest.square().mean(2)).exp()
    index = torch.arange(num_tokens, device=tokens.device)
    ours, theirs = density.unsqueeze(2), density.unsqueeze(1)
    denser = (theirs > ours) | ((theirs == ours) & (index < index.unsqueeze(1)))
    separation = distance.masked_fill(~denser, torch.inf).amin(2)
    # No token is denser than the densest: its separation is the largest distance.
    separation = torch.where(separation.isinf(), distance.flatten(1).amax(1, keepdim=True), separation)
    centres = (density * separation).argsort(dim=1, descending=True, stable=True)[:, :num_clusters]
    to_centres = distance.gather(2, centres.unsqueeze(1).expand(-1, num_tokens, -1))
    owners = centres.gather(1, to_centres.argmin(2))
    # If two equal tokens are both centres, each keeps its own cluster.
    return torch.scatter(owners, 1, centres, centres)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostDensityPeaks(Budget):
    """Cluster cached tokens by density peaks, and keep the mean of each cluster.

    Attributes:
        frames_per_segment: Frames clustered together, a divisor of the clip's frames; null: the whole clip.
        num_neighbours: Number of nearest tokens that define a token's density; 4 in FastVID, 7 in PruneVid.

    Source: the clustering that PruneVid (ACL Findings 2025), FastVID and HoliTom (NeurIPS 2025) have in common, without
    their attention-based parts, which need a language model.
    """

    frames_per_segment: int | None = 1
    num_neighbours: int = 5
    name: ClassVar[str] = "density_peaks"

    def __post_init__(self) -> None:
        Budget.__post_init__(self)
        for name in ("frames_per_segment", "num_neighbours"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise VidflowError(f"reducer 'density_peaks' has {name} {number}; wanted 1 or more")

    @property
    def is_even(self) -> bool:
        """Whether each frame is clustered alone."""
        return self.frames_per_segment == 1

    def check(self, shape: VitShape, *, num_frames: int) -> None:
        """Check that segments fill a clip, and that frames have enough tokens for the budget.

        Raises:
            VidflowError: A check fails.
        """
        Budget.check(self, shape, num_frames=num_frames)
        self._check_segments(num_frames)

    def _check_segments(self, num_frames: int) -> None:
        frames = self.frames_per_segment
        if frames is not None and num_frames % frames:
            raise VidflowError(
                f"reducer 'density_peaks' has frames_per_segment {frames}, but clips have {num_frames} frames; "
                "wanted a number that divides them"
            )

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Cluster each segment."""
        num_frames, height, width = tokens.shape[1:4]
        self._check_segments(num_frames)
        frames = self.frames_per_segment or num_frames
        segments = tokens.reshape(tokens.shape[0] * num_frames // frames, -1, tokens.shape[-1])
        num_clusters = self.num_left(height * width, frames)
        owners = cluster_owners(segments, num_clusters=num_clusters, num_neighbours=self.num_neighbours)
        itself = torch.arange(segments.shape[1], device=tokens.device)
        step = group_tokens(owners, owners == itself, combine="mean", num_rows=num_clusters)
        return join_frames(step, num_frames // frames)


__all__ = ["PostDensityPeaks", "cluster_owners"]
