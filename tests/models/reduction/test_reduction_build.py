"""Every reducer by name: what it accepts, and the invariants that all of them share."""

from typing import Any

import pytest
import torch
from token_reduction import ReducedClips, reduce_clips, unmerge

from vidflow.errors import VidflowError
from vidflow.models.reduction.build import build_reducer

POST: list[tuple[str, dict[str, Any]]] = [
    ("tome", {"keep": 0.3}),
    ("tome", {"keep": 0.6, "scope": "clip"}),
    ("drop", {"keep": 0.6}),
    ("random_merge", {"keep": 0.3}),
    ("random_drop", {"keep": 0.6}),
    ("hybrid", {"keep": 0.6, "threshold": 0.2}),
    ("algm", {"threshold": 0.3, "window": [1, 2, 2]}),
    ("evs", {"prune": 0.6}),
    ("evs", {"threshold": 0.8}),
    ("evs", {"threshold": 0.8, "reference": "last_kept"}),
    ("dycoke", {"prune": 0.7}),
    ("sttm", {"spatial_threshold": 0.6, "temporal_threshold": 0.2}),
    ("density_peaks", {"keep": 0.3, "frames_per_segment": 3}),
    ("divprune", {"keep": 0.3}),
    ("pool", {"window": [2, 2, 2]}),
    ("fewer_frames", {"stride": 2}),
    ("random", {"keep": 0.3}),
]
# These drop patches for good; what the others keep stands for all of them.
DROPPING = {"drop", "random_drop", "hybrid", "random"}
SEEDS = torch.arange(4) + 100


def clips() -> torch.Tensor:
    """Make clips of which some places stay the same, so that adaptive counts differ."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 6, 5, 4, 8, generator=generator)
    tokens[0, 3:] = tokens[0, 2:3]
    tokens[1, :, :2] = tokens[1, :1, :2]
    tokens[2, :, :, 1:] = tokens[2, :, :, :1]
    return tokens


def reduce(name: Any, settings: dict[str, Any], tokens: torch.Tensor, seeds: torch.Tensor = SEEDS) -> ReducedClips:
    reducer = build_reducer(name, place="post", **settings)
    assert reducer is not None
    assert reducer.place == "post"
    return reduce_clips(reducer, tokens, seeds=seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "settings"), POST)
def test_sizes_counts_and_assignment_agree(name: str, settings: dict[str, Any]) -> None:
    tokens = clips()
    reduced = reduce(name, settings, tokens)
    for clip in range(4):
        num_rows = int(reduced.counts[clip].sum())
        assert (reduced.sizes[clip, num_rows:] == 0).all()
        assert (reduced.tokens[clip, num_rows:] == 0).all()
        kept = reduced.assignment[clip][reduced.assignment[clip] >= 0]
        assert torch.equal(kept.unique(), torch.arange(num_rows))
        if name != "hybrid":
            assert torch.equal(torch.bincount(kept).float(), reduced.sizes[clip, :num_rows])
    if name not in DROPPING:
        assert torch.equal(reduced.sizes.sum(1), torch.full((4,), 120.0))


@pytest.mark.parametrize(("name", "settings"), POST)
def test_a_clip_alone_is_reduced_as_in_any_batch(name: str, settings: dict[str, Any]) -> None:
    tokens = clips()
    order = torch.tensor([2, 0, 3, 1])
    together, shuffled = reduce(name, settings, tokens), reduce(name, settings, tokens[order], SEEDS[order])
    for clip in range(4):
        alone = reduce(name, settings, tokens[clip : clip + 1], SEEDS[clip : clip + 1])
        num_rows = int(alone.counts.sum())
        assert torch.equal(together.assignment[clip], alone.assignment[0])
        assert torch.equal(shuffled.assignment, together.assignment[order])
        assert torch.equal(together.counts[clip], alone.counts[0])
        assert torch.equal(together.tokens[clip, :num_rows], alone.tokens[0, :num_rows])


@pytest.mark.parametrize(("name", "settings"), POST)
def test_undoing_and_reducing_by_the_same_groups_gives_the_same(name: str, settings: dict[str, Any]) -> None:
    reduced = reduce(name, settings, clips())
    copies = unmerge(reduced.tokens, reduced.assignment)
    assert copies.shape == (4, 120, 8)
    dropped = reduced.assignment < 0
    assert (copies[dropped] == 0).all()
    for clip in range(4):
        for row in range(int(reduced.counts[clip].sum())):
            members = copies[clip, reduced.assignment[clip] == row]
            assert torch.equal(members, reduced.tokens[clip, row].expand_as(members))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tome", {"keep": 1.0}),
        ("drop", {"keep": 1.0}),
        ("random_merge", {"keep": 1.0}),
        ("hybrid", {"keep": 1.0}),
        ("algm", {"threshold": 1.1}),
        ("evs", {"prune": 0.0}),
        ("dycoke", {"prune": 0.0}),
        ("sttm", {"spatial_threshold": 1.1, "temporal_threshold": 1.1}),
        ("density_peaks", {"keep": 1.0}),
        ("divprune", {"keep": 1.0}),
        ("pool", {"window": [1, 1, 1]}),
        ("fewer_frames", {"stride": 1}),
        ("random", {"keep": 1.0}),
    ],
)
def test_no_reduction_is_the_identity_bit_for_bit(name: str, settings: dict[str, Any]) -> None:
    tokens = clips()
    reduced = reduce(name, settings, tokens)
    assert torch.equal(reduced.tokens, tokens.flatten(1, 3))
    assert (reduced.sizes == 1).all()
    assert torch.equal(reduced.assignment, torch.arange(120).expand(4, -1))


def test_half_precision_features_are_reduced_like_single_precision_ones() -> None:
    tokens = clips().half()
    for name, settings in POST:
        half, single = reduce(name, settings, tokens), reduce(name, settings, tokens.float())
        assert half.tokens.dtype == torch.float16
        assert torch.equal(half.assignment, single.assignment), name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tome", {}),
        ("tome", {"scope": "clip"}),
        ("random_drop", {}),
        ("density_peaks", {"frames_per_segment": 3}),
        ("density_peaks", {"frames_per_segment": None}),
        ("divprune", {}),
        ("divprune", {"scope": "clip"}),
        ("random", {}),
    ],
)
def test_a_number_of_tokens_per_frame_is_a_fraction_of_them(name: str, settings: dict[str, Any]) -> None:
    number, fraction = (reduce(name, settings | budget, clips()) for budget in ({"tokens": 7}, {"keep": 7 / 20}))
    assert (number.counts.sum(1) == 6 * 7).all()
    assert torch.equal(number.assignment, fraction.assignment)
    assert torch.equal(number.tokens, fraction.tokens)
    with pytest.raises(VidflowError, match="tokens 21; wanted at most the 20 patches"):
        reduce(name, settings | {"tokens": 21}, clips())


@pytest.mark.parametrize("name", ["random", "random_merge", "random_drop"])
def test_another_seed_is_another_draw_and_0_is_the_usual_one(name: str) -> None:
    usual, same, other = (reduce(name, {"keep": 0.4} | seed, clips()) for seed in ({}, {"seed": 0}, {"seed": 1}))
    assert torch.equal(usual.assignment, same.assignment)
    assert all((usual.assignment[clip] != other.assignment[clip]).any() for clip in range(4))
    # Nor are the frames of one draw those of the other in another order.
    frames = torch.cat([(part.assignment[0] >= 0).view(6, 20) for part in (usual, other)])
    if name == "random":
        assert len(frames.unique(dim=0)) == 12


def test_none_is_none() -> None:
    assert build_reducer("none") is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tomee", {}, "nearest: tome"),
        ("tome", {"r": 4}, "has no setting r; it has num_merged, keep"),
        ("tome", {"keep": 0.5, "schedule": "slow"}, "constant, decreasing, increasing"),
        ("tome", {"keep": "half"}, "keep .half.; wanted a number"),
        ("tome", {"keep": 0.5, "place": "input"}, "cannot act at place 'input'"),
        ("sttm", {"place": "block"}, "leave the place out for 'post'"),
        ("tome", {"keep": 0.5, "tokens": 4}, "one of num_merged, keep and tokens"),
        ("tome", {"tokens": 0}, "tokens 0; wanted 1 or more"),
        ("tome", {"place": "post"}, "one of keep and tokens"),
        ("random", {"keep": 0.5, "tokens": 4}, "one of keep and tokens"),
        ("random", {"tokens": 2.5}, "tokens 2.5; wanted a whole number"),
        ("divprune", {}, "one of keep and tokens"),
        ("density_peaks", {"tokens": -1}, "tokens -1; wanted 1 or more"),
        ("none", {"keep": 0.5}, "has no setting keep"),
        ("tome", {"keep": 0.5, "place": "before"}, "input, block, post"),
        ("evs", {"reference": "next", "threshold": 0.1}, "previous, last_kept"),
    ],
)
def test_a_mistake_is_named_with_what_is_wanted(name: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(VidflowError, match=message):
        build_reducer(name, **settings)
