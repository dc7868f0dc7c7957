"""ALGM: merge windows of similar tokens locally, then similar tokens anywhere, by thresholds fixed beforehand.

The published method takes counts from the least reducible image of a batch. Here every sample has its own counts, and
both thresholds are calibrated once, so that a feature does not depend on its batch.

Axes: B samples, T frames, F frames of a sample, H and W the grid, N = T x H x W tokens, U windows of m tokens, D width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment, owners_of
from vidflow.models.reduction.in_block import BlockReducer, BlockView, PositionPolicy
from vidflow.models.reduction.macs import VitShape, count_macs
from vidflow.models.reduction.matching import match_tokens, merge_sources
from vidflow.models.reduction.reducer import PostReducer

Window = tuple[int, int, int]


def window_members(grid: Window, window: Window, device: torch.device) -> Int[Tensor, "U m"]:
    """Return the tokens of each whole window; tokens at the far edges that do not fill a window are left out."""
    index = torch.arange(math.prod(grid), device=device).view(grid)
    for axis, side in enumerate(window):
        index = index.narrow(axis, 0, grid[axis] // side * side).unfold(axis, side, side)
    return index.flatten(3).flatten(0, 2)


def window_similarity(tokens: Float[Tensor, "B N D"], members: Int[Tensor, "U m"]) -> Float[Tensor, "B U"]:
    """Return the mean cosine similarity of each window's pairs of different tokens.

    Source: ALGM (Norouzi et al., CVPR 2024), local merging. The sum over pairs is |sum of unit vectors|^2 - m.
    """
    num_members = members.shape[1]
    unit = F.normalize(tokens.float(), dim=-1)[:, members]
    return (unit.sum(2).square().sum(-1) - num_members) / (num_members * (num_members - 1))


def merge_windows(
    similarity: Float[Tensor, "B U"], members: Int[Tensor, "U m"], num_tokens: int, *, threshold: float
) -> Assignment:
    """Merge every window whose similarity reaches the threshold.

    Rows are the merged windows, most similar first, then all other tokens in raster order.
    """
    batch = similarity.shape[0]
    reaches = similarity >= threshold
    num_merged = reaches.sum(1, keepdim=True)
    order = torch.where(reaches, similarity, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    merged = torch.zeros(batch, num_tokens, dtype=torch.bool, device=similarity.device)
    merged[:, members.flatten()] = reaches.repeat_interleave(members.shape[1], dim=1)
    rows = num_merged + (~merged).cumsum(1) - 1
    window_rows = torch.where(reaches, ranks, -1).repeat_interleave(members.shape[1], dim=1)
    rows[:, members.flatten()] = torch.where(window_rows >= 0, window_rows, rows[:, members.flatten()])
    is_owner = ~merged
    is_owner[:, members[:, 0]] = True
    counts = num_tokens - num_merged.squeeze(1) * (members.shape[1] - 1)
    return Assignment(row_of=rows, owners=owners_of(rows, is_owner, int(counts.max())), counts=counts)


def calibrated_threshold(
    similarity: Float[Tensor, " samples"], *, sigmas: float = 1.0, fraction: float | None = None
) -> float:
    """Return the similarity above which to merge, from a sample of similarities.

    Args:
        similarity: Similarities measured without merging on frames of the training split.
        sigmas: Number of standard deviations between the mean and the threshold.
        fraction: Instead: share of windows (or tokens) to merge on the sample, in (0, 1).

    Source: ALGM (Norouzi et al., CVPR 2024), automatic threshold; the fraction is ours.
    """
    if fraction is not None:
        return float(similarity.double().quantile(1 - fraction))
    return float(similarity.double().mean() + sigmas * similarity.double().std())


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWindows(BlockReducer):
    """Merge windows of similar tokens in an early block, then similar tokens anywhere in a later block.

    Attributes:
        local_threshold: Similarity from which a window merges, in [-1, 1].
        global_threshold: Similarity from which a token merges with its partner; null: no second step.
        local_block: Block of the first step, from 0.
        global_block: Block of the second.
        window: Side of a window in patches.
        proportional_attention: Whether attention weights keys by their number of patches; the released code does not.
        positions: The position of a merged token in rotary embeddings.

    Source: ALGM (Norouzi et al., CVPR 2024): blocks 1 and 5 of 12, windows of 2 x 2, the residual stream as metric.
    Differs: counts are per sample, and the second threshold is fixed.
    """

    local_threshold: float = 0.88
    global_threshold: float | None = None
    local_block: int = 0
    global_block: int = 4
    window: int = 2
    proportional_attention: bool = False
    positions: PositionPolicy = "mean"

    @property
    def is_even(self) -> bool:
        """Never."""
        return False

    def check(self, shape: VitShape, *, num_frames: int) -> None:  # noqa: ARG002
        """Check that both blocks exist and are in order, and that a window fits the grid."""
        depth, grid = shape.depth, shape.grid
        if not 0 <= self.local_block < depth:
            raise VidflowError(f"reducer 'algm' has local_block {self.local_block}; wanted 0 to {depth - 1}")
        if self.global_threshold is not None and not self.local_block < self.global_block < depth:
            raise VidflowError(
                f"reducer 'algm' has local_block {self.local_block} and global_block {self.global_block}; "
                f"wanted local_block < global_block < {depth}"
            )
        if not 2 <= self.window <= min(grid):
            raise VidflowError(f"reducer 'algm' has window {self.window}; wanted 2 to {min(grid)} patches")

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float | None:
        """Return the cost of blocks and of comparing windows; None for two steps: the count between is not recorded."""
        if self.global_threshold is not None:
            return None
        left = [shape.num_patches] * (self.local_block + 1) + [round(float(counts.mean()))] * num_blocks
        return count_macs(shape, left[: num_blocks + 1]) + shape.num_patches * shape.embed_dim

    def acts_at(self, index: int, *, depth: int, num_patches: int) -> bool:  # noqa: ARG002
        """Say whether a block is one of the two."""
        return index == self.local_block or (index == self.global_block and self.global_threshold is not None)

    def assign(self, view: BlockView) -> Assignment | None:
        """Merge windows in the first block and matched tokens in the second."""
        if view.index == self.local_block:
            members = window_members((1, *view.grid), (1, self.window, self.window), view.tokens.device)
            similarity = window_similarity(view.tokens, members)
            return merge_windows(similarity, members, view.num_tokens, threshold=self.local_threshold)
        assert self.global_threshold is not None
        matching = match_tokens(view.tokens, first=view.num_prefix % 2, valid=view.valid)
        # Nothing is matched after this, so rows may be in raster order; if nothing merges, the order is unchanged.
        step = merge_sources(matching, matching.scores >= self.global_threshold, num_merged=None)
        return step.in_owner_order()


@dataclass(frozen=True, slots=True, kw_only=True)
class PostWindows(PostReducer):
    """Merge windows of similar cached tokens, over space and optionally time.

    Attributes:
        threshold: Similarity from which a window merges, in [-1, 1].
        window: Frames, rows and columns of a window.

    Source: ALGM (Norouzi et al., CVPR 2024), local merging; the time axis is ours.
    """

    threshold: float = 0.88
    window: Window = (1, 2, 2)

    def __post_init__(self) -> None:
        if min(self.window) < 1 or math.prod(self.window) < 2:
            raise VidflowError(
                f"reducer 'algm' has window {list(self.window)}; wanted three numbers from 1, one above 1 at least"
            )

    @property
    def is_even(self) -> bool:
        """Never."""
        return False

    def check(self, shape: VitShape, *, num_frames: int) -> None:
        """Check that a window fits a clip.

        Raises:
            VidflowError: It does not.
        """
        self._check_window((num_frames, *shape.grid))

    def _check_window(self, clip: Window) -> None:
        if any(side > length for side, length in zip(self.window, clip, strict=True)):
            raise VidflowError(f"reducer 'algm' has window {list(self.window)}; wanted at most {list(clip)}, the clip")

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Merge windows of similar tokens."""
        num_frames, height, width = tokens.shape[1:4]
        self._check_window((num_frames, height, width))
        members = window_members((num_frames, height, width), self.window, tokens.device)
        values = tokens.flatten(1, 3)
        similarity = window_similarity(values, members)
        return merge_windows(similarity, members, values.shape[1], threshold=self.threshold).in_owner_order()


__all__ = [
    "BlockWindows",
    "PostWindows",
    "Window",
    "calibrated_threshold",
    "merge_windows",
    "window_members",
    "window_similarity",
]
