"""STTM: merge similar patches into quadtree cells in each frame, and join cells over time if they stay similar.

Axes: B clips, T frames, H and W the grid, N patches of a frame, C cells of a level, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment, group_tokens
from vidflow.models.reduction.reducer import PostReducer


def cell_levels(height: int, width: int, num_levels: int, device: torch.device) -> list[Int[Tensor, " N"]]:
    """Return the cell of every patch on each level; level 0 has the patches themselves.

    Each level has half the rows and columns of the level before; if their number is odd, the first is not paired.
    """
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    levels = []
    for _ in range(num_levels + 1):
        levels.append((rows.unsqueeze(1) * width + columns).flatten())
        rows, columns = (rows + height % 2) // 2, (columns + width % 2) // 2
        height, width = -(-height // 2), -(-width // 2)
    return levels


def leaf_owners(
    patches: Float[Tensor, "B N D"], levels: list[Int[Tensor, " N"]], *, threshold: float
) -> Int[Tensor, "B N"]:
    """Return for every patch the first patch of its leaf.

    From the coarsest level downwards, a cell becomes a leaf if the similarity of its mean to the mean of each child
    reaches the threshold.

    Source: STTM (Hyun et al., ICCV 2025), coarse-to-fine spatial merging; the mean is over patches, so children with
    fewer patches weigh less.
    """
    batch, num_patches, _ = patches.shape
    owners = torch.arange(num_patches, device=patches.device).expand(batch, -1)
    child_means = patches.float()
    for cells in levels[1:]:
        num_cells = int(cells[-1]) + 1
        ones = torch.zeros(num_cells, device=patches.device).index_add_(
            0, cells, torch.ones_like(cells, dtype=torch.float32)
        )
        total = torch.zeros(batch, num_cells, patches.shape[2], device=patches.device).index_add_(
            1, cells, patches.float()
        )
        means = (total / ones.unsqueeze(-1))[:, cells]
        alike = F.cosine_similarity(means, child_means, dim=-1) >= threshold
        unlike = torch.zeros(batch, num_cells, device=patches.device).index_add_(1, cells, (~alike).float())
        is_leaf = (unlike == 0)[:, cells]
        first = torch.full((num_cells,), num_patches, device=patches.device)
        first.scatter_reduce_(0, cells, torch.arange(num_patches, device=patches.device), reduce="amin")
        owners = torch.where(is_leaf, first[cells], owners)
        child_means = means
    return owners


def join_over_time(linked: Bool[Tensor, "B T1 N"], leaves: Int[Tensor, "B T N"]) -> Int[Tensor, "B TN"]:
    """Return for every patch of a clip the first patch of its connected component.

    Leaves of two frames that share a patch are nested, because they are cells of the same quadtree. So it is enough to
    link them at patches. Labels spread until nothing changes, twice as far in each round.

    Args:
        linked: Whether the leaves of frames t and t + 1 are linked, at each patch.
        leaves: First patch of each patch's leaf, as an index into its frame.
    """
    batch, num_frames, num_patches = leaves.shape
    offsets = torch.arange(num_frames, device=leaves.device).view(1, -1, 1) * num_patches
    owners = (leaves + offsets).flatten(1)
    labels = owners
    while True:
        grid = labels.view(batch, num_frames, num_patches)
        earlier, later = grid[:, :-1], grid[:, 1:]
        joint = torch.where(linked, torch.minimum(earlier, later), torch.iinfo(torch.int64).max)
        spread = grid.clone()
        spread[:, 1:] = torch.minimum(spread[:, 1:], joint)
        spread[:, :-1] = torch.minimum(spread[:, :-1], joint)
        # All patches of a leaf take its smallest label; then each label is replaced by its own label.
        flat = labels.clone().scatter_reduce_(1, owners, spread.flatten(1), reduce="amin").gather(1, owners)
        flat = flat.gather(1, flat)
        if torch.equal(flat, labels):
            return labels
        labels = flat


@dataclass(frozen=True, slots=True, kw_only=True)
class PostQuadtree(PostReducer):
    """Merge similar patches in quadtree cells of each frame, then join cells that stay similar over time.

    Attributes:
        spatial_threshold: Similarity of a cell to its parts from which it becomes one token; published .80 to .90.
        temporal_threshold: Similarity from which overlapping tokens of consecutive frames become one; published .50 to
            .65; null: nothing is joined over time.
        num_levels: The coarsest cells have sides of 2^num_levels patches; published 2 for a grid of 14.

    Source: STTM (Hyun et al., ICCV 2025). Differs in averaging by area, so that sizes count patches.
    """

    spatial_threshold: float = 0.85
    temporal_threshold: float | None = 0.6
    num_levels: int = 2

    def __post_init__(self) -> None:
        if self.num_levels < 0:
            raise VidflowError(f"reducer 'sttm' has num_levels {self.num_levels}; wanted 0 or more")

    @property
    def is_even(self) -> bool:
        """Never."""
        return False

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Merge cells, then components."""
        batch, num_frames, height, width, _ = tokens.shape
        levels = cell_levels(height, width, self.num_levels, tokens.device)
        patches = tokens.flatten(0, 1).flatten(1, 2).float()
        leaves = leaf_owners(patches, levels, threshold=self.spatial_threshold)
        means = _leaf_means(patches, leaves).view(batch, num_frames, *patches.shape[1:])
        leaves = leaves.view(batch, num_frames, -1)
        if self.temporal_threshold is None:
            linked = torch.zeros_like(leaves[:, 1:], dtype=torch.bool)
        else:
            linked = F.cosine_similarity(means[:, 1:], means[:, :-1], dim=-1) >= self.temporal_threshold
        labels = join_over_time(linked, leaves)
        itself = torch.arange(labels.shape[1], device=labels.device)
        return group_tokens(labels, labels == itself, combine="mean")


def _leaf_means(patches: Float[Tensor, "B N D"], leaves: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
    """Return for every patch the mean of its leaf."""
    index = leaves.unsqueeze(-1).expand_as(patches)
    total = torch.zeros_like(patches).scatter_add_(1, index, patches)
    count = torch.zeros_like(leaves, dtype=patches.dtype).scatter_add_(1, leaves, torch.ones_like(patches[..., 0]))
    return (total / count.clamp(min=1).unsqueeze(-1)).gather(1, index)


__all__ = ["PostQuadtree", "cell_levels", "join_over_time", "leaf_owners"]
