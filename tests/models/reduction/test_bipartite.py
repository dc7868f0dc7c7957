"""Schedules, and bipartite reduction of cached tokens."""

import itertools

import pytest
import torch
from shapes import vit_shape
from token_reduction import unmerge

from vidflow.errors import VidflowError
from vidflow.models.reduction.bipartite import BlockBipartite, PostBipartite, Schedule, schedule_merges
from vidflow.models.reduction.macs import count_tokens


def test_published_schedules_come_out() -> None:
    falling = [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]
    assert schedule_merges(16, "constant", depth=12) == [16] * 12
    assert schedule_merges(16, "decreasing", depth=12) == falling
    assert sum(schedule_merges(16, "increasing", depth=12)) == 187
    assert schedule_merges([4, 2], "constant", depth=4) == [4, 2, 0, 0]


@pytest.mark.parametrize(
    ("num_tokens", "num_merged", "last"),
    [(3136, 300, [437, 219, 110, 56]), (1568, 150, [218, 109, 55, 28]), (196, 18, [34, 17, 9, 5])],
)
def test_published_trajectories_come_out(num_tokens: int, num_merged: int, last: list[int]) -> None:
    counts = count_tokens(num_tokens, [num_merged] * 12)
    # ViViT's counts include its class token.
    assert [count + (num_tokens == 3136) for count in counts[-4:]] == last


@pytest.mark.parametrize("schedule", ["constant", "decreasing", "increasing"])
@pytest.mark.parametrize(
    ("num_patches", "depth"), [(36, 6), (36, 12), (64, 12), (196, 12), (196, 24), (256, 24), (9, 1)]
)
def test_a_fraction_to_keep_is_what_is_left_after_the_last_block(
    num_patches: int, depth: int, schedule: Schedule
) -> None:
    for percent in range(1, 101):
        merges = BlockBipartite(keep=percent / 100, schedule=schedule).merges(depth=depth, num_patches=num_patches)
        wanted = max(1, round(percent / 100 * num_patches))
        least = num_patches
        for _ in range(depth):
            least -= least // 2
        counts = count_tokens(num_patches, merges)
        assert counts[-1] == max(wanted, least)
        # What is asked of a block is what it does.
        assert [before - after for before, after in itertools.pairwise(counts)] == merges


@pytest.mark.parametrize(
    ("schedule", "merges"),
    [("constant", [12, 13, 13, 12]), ("decreasing", [25, 17, 8, 0]), ("increasing", [0, 8, 17, 25])],
)
def test_a_fraction_is_spread_over_the_blocks_by_the_schedule(schedule: Schedule, merges: list[int]) -> None:
    assert BlockBipartite(keep=0.5, schedule=schedule).merges(depth=4, num_patches=100) == merges


def test_a_number_of_tokens_is_what_is_left_after_the_last_block() -> None:
    assert count_tokens(196, BlockBipartite(tokens=70).merges(depth=12, num_patches=196))[-1] == 70


def test_the_last_blocks_halve_and_the_ones_before_them_take_the_rest() -> None:
    assert BlockBipartite(keep=0.05).merges(depth=5, num_patches=100) == [20, 40, 20, 10, 5]


@pytest.mark.parametrize("settings", [{}, {"num_merged": 3, "keep": 0.5}, {"keep": 0.0}, {"num_merged": -1}])
def test_settings_that_contradict_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(VidflowError, match="tome"):
        BlockBipartite(**settings)  # type: ignore[arg-type]


def test_more_numbers_than_blocks_are_refused() -> None:
    with pytest.raises(VidflowError, match="the encoder has 2"):
        BlockBipartite(num_merged=(1, 1, 1)).check(vit_shape(depth=2, side=4), num_frames=1)


@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("keep", [1.0, 0.7, 0.5, 0.2, 0.05])
def test_cached_tokens_come_down_to_the_wanted_number(keep: float, scope: str) -> None:
    tokens = torch.randn(2, 3, 4, 5, 8)
    step = PostBipartite(keep=keep, scope=scope).assign(tokens)  # type: ignore[arg-type]
    assert step.num_rows == (3 * max(1, round(keep * 20)) if scope == "frame" else max(1, round(keep * 60)))
    merged, sizes = step.merge(tokens.flatten(1, 3), torch.ones(2, 60))
    assert torch.equal(sizes.sum(1), torch.tensor([60.0, 60.0]))
    # Sums of sixty float32 numbers.
    torch.testing.assert_close((merged * sizes.unsqueeze(-1)).sum(1), tokens.flatten(1, 3).sum(1), atol=1e-4, rtol=1e-4)
    if keep == 1.0:
        assert torch.equal(merged, tokens.flatten(1, 3))


def test_within_frames_no_token_leaves_its_frame() -> None:
    step = PostBipartite(keep=0.3).assign(torch.randn(1, 4, 4, 4, 8))
    owners = step.owners.gather(1, step.row_of)
    assert torch.equal(owners // 16, torch.arange(64).view(1, -1) // 16)


@pytest.mark.parametrize("mode", ["random_merge", "random_drop"])
def test_random_modes_want_a_seed_and_repeat_with_it(mode: str) -> None:
    reducer = PostBipartite(mode=mode, keep=0.4)  # type: ignore[arg-type]
    tokens = torch.randn(2, 3, 4, 4, 8)
    with pytest.raises(ValueError, match="seed"):
        reducer.assign(tokens)
    seeds = torch.tensor([1, 2])
    step = reducer.assign(tokens, seeds=seeds)
    assert torch.equal(step.row_of, reducer.assign(torch.randn_like(tokens), seeds=seeds).row_of)
    assert torch.equal(step.row_of[1:], reducer.assign(tokens[1:], seeds=seeds[1:]).row_of)
    assert not torch.equal(step.row_of[0], step.row_of[1])
    assert len(step.row_of[0].unflatten(0, (3, 16)).unique(dim=0)) == 3


def test_merging_like_tokens_loses_less_than_merging_random_ones() -> None:
    centres = torch.randn(1, 1, 8, 32, generator=torch.Generator().manual_seed(0))
    # Eight groups of eight, each with half of its tokens in either half of the matching.
    tokens = centres.repeat_interleave(8, dim=2) + 0.05 * torch.randn(1, 1, 64, 32)
    grid = tokens.view(1, 1, 8, 8, 32)
    errors = []
    for mode in ("tome", "random_merge"):
        step = PostBipartite(mode=mode, keep=0.3).assign(grid, seeds=torch.tensor([1]))  # type: ignore[arg-type]
        values = grid.flatten(1, 3)
        copies = unmerge(step.merge(values, torch.ones(1, 64))[0], step.row_of)
        errors.append(float((copies - values).square().mean()))
    assert errors[0] < 0.05 * errors[1]
