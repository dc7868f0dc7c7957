"""Bipartite matching against a slow re-implementation and the reference's outputs."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file
from token_reduction import unmerge

from vidflow.models.reduction.assignment import Assignment, follow
from vidflow.models.reduction.bipartite import assign_matched
from vidflow.models.reduction.matching import Order, match_tokens


def slow_groups(metric: torch.Tensor, num_merged: int, num_prefix: int, order: Order = "index") -> list[list[int]]:
    """Group tokens of one sample as the method is described, with lists; rows in output order."""
    unit = [row / row.norm() for row in metric.double()]
    first = [token for token in range(len(unit)) if (token + num_prefix) % 2 == 0]
    second = [token for token in range(len(unit)) if (token + num_prefix) % 2 == 1]
    best = {}
    for token in first:
        similarity = [float(unit[token] @ unit[other]) for other in second]
        best[token] = (max(similarity), second[similarity.index(max(similarity))])
    best_first = sorted(first, key=lambda token: -best[token][0])
    sources = best_first[: min(num_merged, len(unit) // 2)]
    kept = [token for token in (first if order == "index" else best_first) if token not in sources]
    groups = {token: [token] for token in kept + second}
    for token in sources:
        groups[best[token][1]].append(token)
    return [sorted(group) for group in groups.values()]


def merging(
    metric: torch.Tensor, num_merged: int, num_prefix: int = 0, mode: str = "tome", **settings: float | str
) -> Assignment:
    matching = match_tokens(metric, first=num_prefix % 2)
    return assign_matched(matching, mode=mode, num_merged=num_merged, **settings)  # type: ignore[arg-type]


def groups_of(step: Assignment, sample: int = 0) -> list[list[int]]:
    rows = step.row_of[sample].tolist()
    return [[token for token, row in enumerate(rows) if row == wanted] for wanted in range(step.num_rows)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 14),
    st.integers(0, 9),
    st.integers(0, 5),
    st.integers(0, 10**6),
    st.sampled_from(["index", "similarity"]),
)
def test_groups_equal_those_of_the_slow_description(
    num_tokens: int, num_merged: int, num_prefix: int, seed: int, order: Order
) -> None:
    metric = torch.randn(2, num_tokens, 6, generator=torch.Generator().manual_seed(seed))
    step = merging(metric, num_merged, num_prefix, order=order)
    assert step.num_rows == num_tokens - min(num_merged, num_tokens // 2)
    for sample in range(2):
        assert groups_of(step, sample) == slow_groups(metric[sample], num_merged, num_prefix, order)
    owners = step.row_of.gather(1, step.owners)
    assert torch.equal(owners, torch.arange(step.num_rows).expand(2, -1))


@pytest.mark.parametrize("case", ["a", "b", "c", "d"])
def test_the_reference_is_reproduced_over_two_rounds(shared_dir: Path, case: str) -> None:
    data = {
        key.removeprefix(f"{case}."): value
        for key, value in load_file(shared_dir / "fixtures" / "tome_matching.safetensors").items()
        if key.startswith(f"{case}.")
    }
    num_prefix, num_merged = int(data["cls"]), int(data["r"])
    prefix, patches = data["x"][:, :num_prefix], data["x"][:, num_prefix:]
    first = merging(data["metric"][:, num_prefix:], num_merged, num_prefix)
    sizes = torch.ones(patches.shape[:2])

    def with_prefix(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix, rows], dim=1)

    merged, merged_sizes = first.merge(patches, sizes)
    # Sums of a few float32 numbers in another order.
    torch.testing.assert_close(with_prefix(merged), data["y"], atol=1e-6, rtol=0)
    assert torch.equal(merged_sizes, data["size"][:, num_prefix:, 0])
    assert torch.equal(first.row_of + num_prefix, data["source"].argmax(1)[:, num_prefix:])
    torch.testing.assert_close(with_prefix(unmerge(merged, first.row_of)), data["unmerged"], atol=1e-6, rtol=0)

    dropped = merging(data["metric"][:, num_prefix:], num_merged, num_prefix, mode="drop")
    assert torch.equal(with_prefix(dropped.merge(patches, sizes)[0]), data["drop"])
    for threshold in (0.0, 0.3):
        hybrid = merging(data["metric"][:, num_prefix:], num_merged, num_prefix, mode="hybrid", threshold=threshold)
        values, hybrid_sizes = hybrid.merge(patches, sizes)
        torch.testing.assert_close(with_prefix(values), data[f"hybrid{threshold}"], atol=1e-6, rtol=0)
        assert torch.equal(hybrid_sizes, data[f"hybrid{threshold}.size"][:, num_prefix:, 0])

    second = merging(data["metric2"][:, num_prefix:], merged.shape[1] - (data["y2"].shape[1] - num_prefix), num_prefix)
    again, again_sizes = second.merge(merged, merged_sizes)
    torch.testing.assert_close(with_prefix(again), data["y2"], atol=1e-6, rtol=0)
    assert torch.equal(again_sizes, data["size2"][:, num_prefix:, 0])
    both = follow(first.row_of, second.row_of)
    assert torch.equal(both + num_prefix, data["source2"].argmax(1)[:, num_prefix:])


def test_the_scale_of_a_token_does_not_matter() -> None:
    metric = torch.randn(2, 12, 8)
    scaled = metric * torch.rand(2, 12, 1).add(0.1)
    assert torch.equal(merging(metric, 4).row_of, merging(scaled, 4).row_of)


def test_samples_do_not_depend_on_their_batch() -> None:
    metric = torch.randn(5, 12, 8)
    whole = merging(metric, 4).row_of
    assert torch.equal(whole, torch.cat([merging(sample[None], 4).row_of for sample in metric]))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(whole[order], merging(metric[order], 4).row_of)


def test_order_within_a_half_does_not_matter_but_order_overall_does() -> None:
    generator = torch.Generator().manual_seed(0)
    metric = torch.randn(1, 12, 8, generator=generator)
    values = torch.randn(1, 12, 3, generator=generator)

    def rows(order: torch.Tensor) -> torch.Tensor:
        merged, _ = merging(metric[:, order], 4).merge(values[:, order], torch.ones(1, 12))
        return merged[0].sort(dim=0).values

    within = torch.tensor([4, 7, 0, 11, 2, 1, 10, 3, 6, 9, 8, 5])
    torch.testing.assert_close(rows(within), rows(torch.arange(12)))
    across = torch.arange(12).roll(3)[torch.randperm(12, generator=generator)]
    assert not torch.allclose(rows(across), rows(torch.arange(12)))


def test_pairs_of_duplicates_merge_without_loss() -> None:
    pairs = torch.randn(1, 6, 8).repeat_interleave(2, dim=1)
    step = merging(pairs, 6)
    merged, sizes = step.merge(pairs, torch.ones(1, 12))
    torch.testing.assert_close(unmerge(merged, step.row_of), pairs)
    assert sizes.tolist() == [[2.0] * 6]


@pytest.mark.parametrize("order", ["index", "similarity"])
def test_padding_is_never_a_partner_and_gets_no_row(order: Order) -> None:
    metric = torch.randn(2, 9, 4)
    # The padding would be everybody's best partner.
    metric[1, 6:] = metric[1, 0]
    valid = torch.arange(9) < torch.tensor([[9], [6]])
    matching = match_tokens(metric, first=0, valid=valid)
    step = assign_matched(matching, mode="tome", num_merged=2, order=order)
    assert step.counts is not None
    assert step.counts.tolist() == [7, 4]
    assert (step.row_of[1, 6:] == -1).all()
    assert groups_of(step, 1)[:4] == slow_groups(metric[1, :6], 2, 0, order)


@pytest.mark.parametrize(
    ("threshold", "values", "sizes"), [(0.5, [3.0, 6.0], [2.0, 1.0]), (0.0, [3.0, 7.0], [2.0, 2.0])]
)
def test_hybrid_replaces_a_destination_only_below_the_threshold(
    threshold: float, values: list[float], sizes: list[float]
) -> None:
    # Token 0 goes to 1 with cosine 1, token 2 to 3 with cosine 0.29.
    metric = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.3, 1]]])
    step = merging(metric, 2, mode="hybrid", threshold=threshold)
    merged, merged_sizes = step.merge(torch.tensor([[[2.0], [4.0], [6.0], [8.0]]]), torch.ones(1, 4))
    assert merged.flatten().tolist() == values
    assert merged_sizes.flatten().tolist() == sizes
