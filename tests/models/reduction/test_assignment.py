"""Merging, undoing and chaining over integer assignments."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from token_reduction import unmerge

from vidflow.models.reduction.assignment import (
    Assignment,
    frame_counts,
    group_tokens,
    join_frames,
    keep_all,
    keep_tokens,
)


def random_step(seed: int, batch: int, num_tokens: int, num_rows: int) -> Assignment:
    """Make a step in which every row has an owner and the other tokens go anywhere."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.stack([torch.randperm(num_tokens, generator=generator)[:num_rows] for _ in range(batch)])
    assignment = torch.randint(num_rows, (batch, num_tokens), generator=generator)
    return Assignment(row_of=assignment.scatter(1, owners, torch.arange(num_rows).expand(batch, -1)), owners=owners)


def one_hot(step: Assignment) -> torch.Tensor:
    """Return the dense M x N matrix that the assignment stands for, by a loop."""
    dense = torch.zeros(len(step.row_of), step.num_rows, step.num_tokens, dtype=torch.float64)
    for sample, rows in enumerate(step.row_of.tolist()):
        for token, row in enumerate(rows):
            if row >= 0:
                dense[sample, row, token] = 1
    return dense


shapes = st.tuples(st.integers(0, 99), st.integers(1, 3), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(*map(st.just, shape), st.integers(1, shape[2]))
)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_merging_equals_the_dense_matrix_and_conserves_sizes_and_sums(shape: tuple[int, int, int, int]) -> None:
    step = random_step(*shape)
    generator = torch.Generator().manual_seed(shape[0])
    values = torch.randn(shape[1], shape[2], 5, generator=generator)
    sizes = torch.randint(1, 5, (shape[1], shape[2]), generator=generator).float()
    merged, merged_sizes = step.merge(values, sizes)
    dense = one_hot(step) @ (values * sizes.unsqueeze(-1)).double()
    # float32 sums of at most a dozen terms against float64.
    torch.testing.assert_close((merged * merged_sizes.unsqueeze(-1)).double(), dense, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged_sizes.sum(1), sizes.sum(1))
    torch.testing.assert_close(dense.sum(1), (values * sizes.unsqueeze(-1)).double().sum(1))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_undoing_is_constant_on_groups_and_merging_again_gives_the_same(shape: tuple[int, int, int, int]) -> None:
    step = random_step(*shape)
    values = torch.randn(shape[1], shape[2], 5, generator=torch.Generator().manual_seed(shape[0]))
    ones = torch.ones(shape[1], shape[2])
    merged, _ = step.merge(values, ones)
    copies = unmerge(merged, step.row_of)
    assert copies.shape == values.shape
    assert torch.equal(copies, unmerge(step.merge(values, ones)[0], step.row_of))
    for sample in range(shape[1]):
        for row in range(step.num_rows):
            members = copies[sample, step.row_of[sample] == row]
            assert torch.equal(members, merged[sample, row].expand_as(members))
    # A mean of equal values is off by float32 rounding at most.
    torch.testing.assert_close(step.merge(copies, ones)[0], merged)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99))
def test_two_steps_chained_equal_the_steps_one_by_one(seed: int) -> None:
    first, second = random_step(seed, 2, 11, 7), random_step(seed + 1, 2, 7, 3)
    both = first.compose(second)
    values, sizes = torch.randn(2, 11, 4), torch.ones(2, 11)
    merged, merged_sizes = both.merge(values, sizes)
    stepwise, stepwise_sizes = second.merge(*first.merge(values, sizes))
    torch.testing.assert_close(merged, stepwise)
    assert torch.equal(merged_sizes, stepwise_sizes)
    assert torch.equal(one_hot(both), one_hot(second) @ one_hot(first))
    assert torch.equal(both.select(values), second.select(first.select(values)))


def test_weights_chain_too() -> None:
    first, second = random_step(0, 2, 9, 6), random_step(1, 2, 6, 2)
    first = Assignment(row_of=first.row_of, owners=first.owners, weights=torch.rand(2, 9) + 0.1)
    second = Assignment(row_of=second.row_of, owners=second.owners, weights=torch.rand(2, 6) + 0.1)
    values, sizes = torch.randn(2, 9, 4), torch.ones(2, 9)
    merged, merged_sizes = first.compose(second).merge(values, sizes)
    stepwise, stepwise_sizes = second.merge(*first.merge(values, sizes))
    torch.testing.assert_close(merged, stepwise)
    torch.testing.assert_close(merged_sizes, stepwise_sizes)


def test_steps_that_do_not_follow_one_another_are_a_misuse() -> None:
    with pytest.raises(ValueError, match="cannot be followed"):
        random_step(0, 1, 8, 5).compose(random_step(0, 1, 4, 2))


def test_the_identity_changes_no_bit() -> None:
    values, sizes = torch.randn(2, 6, 3), torch.ones(2, 6)
    merged, merged_sizes = keep_all(2, 6, torch.device("cpu")).merge(values, sizes)
    assert torch.equal(merged, values)
    assert torch.equal(merged_sizes, sizes)


def test_keeping_drops_the_rest_and_pads_the_shorter_sample() -> None:
    kept = torch.tensor([[True, False, True, False], [False, True, False, False]])
    step = keep_tokens(kept)
    values = torch.arange(1.0, 9.0).view(2, 4, 1)
    merged, sizes = step.merge(values, torch.ones(2, 4))
    assert step.row_of.tolist() == [[0, -1, 1, -1], [-1, 0, -1, -1]]
    assert merged.squeeze(-1).tolist() == [[1, 3], [6, 0]]
    assert sizes.tolist() == [[1, 1], [1, 0]]
    assert unmerge(merged, step.row_of).squeeze(-1).tolist() == [[1, 0, 3, 0], [0, 6, 0, 0]]


def test_carrying_fills_a_dropped_place_with_the_last_token_kept_there() -> None:
    # Three frames of two places; the second place has nothing before its third frame.
    assignment = torch.tensor([[0, -1, -1, -1, -1, 1]])
    filled = unmerge(torch.tensor([[[5.0], [7.0]]]), assignment, fill="carry", num_frames=3)
    assert filled.flatten().tolist() == [5, 0, 5, 0, 5, 7]


def test_frames_joined_to_a_clip_keep_their_rows_in_order_ragged_or_not() -> None:
    kept = torch.tensor([[True, False, True], [False, True, False], [True, True, True], [False, False, True]])
    frames = keep_tokens(kept)
    clips = join_frames(frames, 2)
    assert clips.row_of.tolist() == [[0, -1, 1, -1, 2, -1], [0, 1, 2, -1, -1, 3]]
    assert clips.owners.tolist() == [[0, 2, 4, 6], [0, 1, 2, 5]]
    assert frame_counts(clips, 2).tolist() == [[2, 1], [3, 1]]
    fixed = join_frames(random_step(0, 4, 5, 3), 2)
    assert frame_counts(fixed, 2).tolist() == [[3, 3], [3, 3]]
    assert (fixed.owners.diff(dim=1) > 0).all()


def test_owner_order_moves_rows_and_nothing_else() -> None:
    step = random_step(3, 2, 10, 4)
    values, sizes = torch.randn(2, 10, 3), torch.ones(2, 10)
    ordered = step.in_owner_order()
    assert (ordered.owners.diff(dim=1) > 0).all()
    assert torch.equal(
        unmerge(ordered.merge(values, sizes)[0], ordered.row_of), unmerge(step.merge(values, sizes)[0], step.row_of)
    )


def test_groups_take_the_mean_or_the_owners_value() -> None:
    group, is_owner = torch.tensor([[0, 0, 2, -1]]), torch.tensor([[True, False, True, False]])
    values = torch.tensor([[[1.0], [3.0], [5.0], [9.0]]])
    for combine, wanted in (("mean", [2.0, 5.0]), ("owner", [1.0, 5.0])):
        merged, sizes = group_tokens(group, is_owner, combine=combine).merge(values, torch.ones(1, 4))
        assert merged.flatten().tolist() == wanted
        assert sizes.tolist() == [[2, 1]]


def test_sizes_stay_exact_where_half_precision_would_not_hold_them() -> None:
    values = torch.ones(1, 5000, 1, dtype=torch.float16)
    step = Assignment(row_of=torch.zeros(1, 5000, dtype=torch.int64), owners=torch.zeros(1, 1, dtype=torch.int64))
    merged, sizes = step.merge(values, torch.ones(1, 5000))
    assert sizes.item() == 5000
    assert merged.dtype == torch.float16
    assert merged.item() == 1
