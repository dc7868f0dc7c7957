"""STTM: quadtree leaves, components over time."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from token_reduction import unmerge

from vidflow.models.reduction.quadtree import PostQuadtree, cell_levels, join_over_time, leaf_owners

CPU = torch.device("cpu")


def test_levels_halve_and_leave_the_first_of_an_odd_number_alone() -> None:
    levels = cell_levels(3, 4, 2, CPU)
    assert levels[1].view(3, 4).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert levels[2].view(3, 4).tolist() == [[0] * 4] * 3
    assert int(cell_levels(14, 14, 2, CPU)[2].max()) == 15


def slow_leaves(patches: torch.Tensor, side: int, threshold: float) -> list[int]:
    """Descend recursively from cells of four, for grids whose side is a multiple of four."""
    grid = patches.view(side, side, -1)
    owners = torch.arange(side * side).view(side, side)

    def descend(row: int, column: int, size: int) -> None:
        if size == 1:
            return
        half = size // 2
        mean = grid[row : row + size, column : column + size].flatten(0, 1).mean(0)
        corners = [(row + a * half, column + b * half) for a in (0, 1) for b in (0, 1)]
        children = [grid[a : a + half, b : b + half].flatten(0, 1).mean(0) for a, b in corners]
        if all(torch.cosine_similarity(mean, child, dim=0) >= threshold for child in children):
            owners[row : row + size, column : column + size] = row * side + column
            return
        for a, b in corners:
            descend(a, b, half)

    for row in range(0, side, 4):
        for column in range(0, side, 4):
            descend(row, column, 4)
    return owners.flatten().tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([-0.5, 0.0, 0.4, 0.7, 0.95]))
def test_leaves_equal_a_recursive_descent(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(2, 64, 3, generator=generator) + 2 * torch.randn(2, 1, 3, generator=generator)
    leaves = leaf_owners(patches, cell_levels(8, 8, 2, CPU), threshold=threshold)
    assert leaves.tolist() == [slow_leaves(sample, 8, threshold) for sample in patches]


def test_extreme_thresholds_give_all_cells_or_the_coarsest_only() -> None:
    patches = torch.randn(1, 196, 4)
    levels = cell_levels(14, 14, 2, CPU)
    assert torch.equal(leaf_owners(patches, levels, threshold=1.01)[0], torch.arange(196))
    assert len(leaf_owners(patches, levels, threshold=-1.01).unique()) == 16


def slow_components(linked: torch.Tensor, leaves: torch.Tensor) -> list[int]:
    """Union-find over patches, for one clip."""
    num_frames, num_patches = leaves.shape
    parents = list(range(num_frames * num_patches))

    def find(node: int) -> int:
        while parents[node] != node:
            node = parents[node]
        return node

    def join(a: int, b: int) -> None:
        low, high = sorted((find(a), find(b)))
        parents[high] = low

    for frame in range(num_frames):
        for place in range(num_patches):
            join(frame * num_patches + place, frame * num_patches + int(leaves[frame, place]))
            if frame and linked[frame - 1, place]:
                join(frame * num_patches + place, (frame - 1) * num_patches + place)
    return [find(node) for node in range(len(parents))]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_components_equal_those_of_union_find(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(12, 16, 3, generator=generator)
    leaves = leaf_owners(patches, cell_levels(4, 4, 1, CPU), threshold=0.1).view(2, 6, 16)
    linked = torch.rand(2, 5, 16, generator=generator) < share
    labels = join_over_time(linked, leaves)
    assert labels.tolist() == [slow_components(linked[clip], leaves[clip]) for clip in range(2)]


@pytest.mark.parametrize("side", [4, 7, 8])
def test_sizes_add_up_and_piecewise_constant_frames_come_back_exactly(side: int) -> None:
    blocks = torch.randn(1, 1, 2, 2, 6)
    half = -(-side // 2)
    frame = blocks.repeat_interleave(half, 2).repeat_interleave(half, 3)[:, :, :side, :side]
    tokens = frame.expand(-1, 3, -1, -1, -1)
    # Cosines of equal vectors in float32 reach 1 up to rounding.
    step = PostQuadtree(spatial_threshold=0.99999, temporal_threshold=0.99999).assign(tokens)
    merged, sizes = step.merge(tokens.flatten(1, 3), torch.ones(1, 3 * side**2))
    assert sizes.sum() == 3 * side**2
    assert step.num_rows < side**2
    torch.testing.assert_close(unmerge(merged, step.row_of), tokens.flatten(1, 3))


def test_time_can_be_left_alone() -> None:
    step = PostQuadtree(temporal_threshold=None).assign(torch.ones(1, 3, 4, 4, 2))
    assert step.owners.tolist() == [[0, 16, 32]]
