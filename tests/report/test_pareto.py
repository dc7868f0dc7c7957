"""Fronts, controls and choices against a slow restatement, and pictures of tokens against their definition."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from vidflow.records import EpochResult, TrialResult
from vidflow.report.pareto import AXES, Axis, ParetoPoint, ParetoSection, compare_features, tint_tokens
from vidflow.stages.cost import FeatureCost


def cost(
    name: str,
    tokens: float,
    *,
    gflops: float | None = 1.0,
    seconds: float = 0.0,
    num_bytes: float = 0.0,
    random: bool = False,
) -> FeatureCost:
    return FeatureCost(
        name=name,
        reducer=name,
        is_reduced=name != "base",
        is_random=random,
        tokens_per_frame=tokens,
        gflops_per_frame=gflops,
        seconds_per_clip=seconds or tokens / 360,
        bytes_per_clip=num_bytes or tokens * 100,
    )


def trial(features: str, core: str, score: float, seed: int = 0, **settings: float) -> TrialResult:
    metrics = {"val/top1": score, "val/top1_low": score - 0.03, "val/top1_high": score + 0.02}
    return TrialResult(
        key=f"{features}{core}{seed}{settings}",
        settings={"task": "classification", "features": features, "core": core, "seed": seed, **settings},
        status="completed",
        history=(EpochResult(epoch=1, metrics=metrics, seconds=1.0, is_best=True),),
        num_parameters=1,
        directory=Path("/runs/t"),
    )


COSTS = {
    each.name: each
    for each in (
        cost("base", 36, gflops=4),
        cost("tome", 18, gflops=2),
        cost("chance", 18.2, gflops=1.9, random=True),
        cost("pool", 9, gflops=4, seconds=0.11),
        cost("adaptive", 12, gflops=None),
    )
}
TRIALS = [
    trial("base", "gru", 0.90, 0),
    trial("base", "gru", 0.92, 1),
    trial("tome", "gru", 0.90, 0),
    trial("tome", "gru", 0.90, 1),
    trial("chance", "gru", 0.70),
    trial("pool", "gru", 0.893),
    trial("adaptive", "gru", 0.5),
    trial("base", "mean", 0.5),
    trial("tome", "mean", 0.6),
]


def section(trials: list[TrialResult] = TRIALS, **changes: object) -> ParetoSection:
    settings = {"task": "classification", "objective": "val/top1", "mode": "max", "is_share": True, **changes}
    found = compare_features(trials, COSTS, **settings)  # type: ignore[arg-type]
    assert found is not None
    return found


def points(core: str) -> dict[str, ParetoPoint]:
    return {point.cost.name: point for point in section().points if point.core == core}


def test_scores_and_intervals_are_means_over_seeds() -> None:
    base = points("gru")["base"]
    assert (base.mean, base.low, base.high) == pytest.approx((0.91, 0.88, 0.93))
    assert len(base.group.trials) == 2


def test_a_point_is_on_a_front_iff_no_other_is_as_cheap_and_as_good() -> None:
    for core in ("gru", "mean"):
        ours = points(core).values()
        for point, axis in itertools.product(ours, AXES):
            mine = point.at(axis)
            beaten = mine is None or any(
                (theirs := other.at(axis)) is not None
                and theirs / mine <= 1.02
                and other.mean >= point.mean
                and (theirs / mine < 0.98 or other.mean > point.mean)
                for other in ours
            )
            assert (axis in point.fronts) == (not beaten)


def test_fronts_are_those_one_sees() -> None:
    gru = points("gru")
    assert {name: set(point.fronts) for name, point in gru.items()} == {
        "base": {"tokens", "gflops", "seconds", "bytes"},
        "tome": {"tokens", "gflops", "seconds", "bytes"},
        "chance": {"gflops"},
        "pool": {"tokens", "bytes"},
        "adaptive": {"seconds"},
    }
    assert points("mean")["base"].fronts == set()


def test_chance_stands_beside_what_has_as_many_tokens_and_nothing_else() -> None:
    found = {name: point.control and point.control.cost.name for name, point in points("gru").items()}
    assert found == {"base": None, "tome": "chance", "chance": None, "pool": None, "adaptive": None}
    assert points("mean")["tome"].control is None  # its core has none


def test_the_cheapest_set_within_a_loss_is_chosen_by_each_cost() -> None:
    chosen = {(c.core, c.drop): {axis: pick.cost.name for axis, pick in c.picks.items()} for c in section().choices}
    assert chosen["gru", 0.005] == dict.fromkeys(AXES, "base")
    # 0.91 - 0.01 is not 0.90 in binary; the loss is one point all the same.
    assert chosen["gru", 0.01] == dict.fromkeys(AXES, "tome")
    assert chosen["gru", 0.02] == {"tokens": "pool", "gflops": "tome", "seconds": "tome", "bytes": "pool"}
    assert chosen["mean", 0.005] == dict.fromkeys(AXES, "tome")


def test_where_less_is_better_a_loss_is_part_of_the_score() -> None:
    trials = [trial("base", "gru", 100.0), trial("tome", "gru", 101.5), trial("pool", "gru", 99.0)]
    found = section(trials, mode="min", is_share=False)
    assert {p.cost.name: set(p.fronts) for p in found.points}["base"] == {"seconds"}
    only_tome = section(trials[:2], mode="min", is_share=False)
    assert [choice.picks["tokens"].cost.name for choice in only_tome.choices] == ["base", "base", "tome"]


def test_of_trials_that_differ_in_more_than_their_seed_the_best_group_counts() -> None:
    trials = [trial("base", "gru", 0.3, learning_rate=1.0), trial("base", "gru", 0.8, learning_rate=0.1), TRIALS[2]]
    base = next(point for point in section(trials).points if point.cost.name == "base")
    assert base.mean == 0.8


def test_one_feature_set_makes_no_section() -> None:
    settings = {"objective": "val/top1", "mode": "max", "is_share": True}
    assert compare_features(TRIALS[:2], COSTS, task="classification", **settings) is None  # type: ignore[arg-type]
    assert compare_features(TRIALS, COSTS, task="depth", **settings) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", AXES)
def test_every_cost_has_a_name(axis: Axis) -> None:
    assert points("gru")["base"].at(axis) is not None


def test_patches_of_a_token_have_its_mean_colour_and_dropped_ones_are_grey() -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[0, :, :4] = [200, 0, 0]
    frames[1, :, :4] = [0, 0, 200]
    # Left halves of both frames are one token; of the right ones the first frame's is a token, the second's is gone.
    assignment = np.array([[0, 1, 0, 1], [0, -1, 0, -1]])
    frames[:, :, 4:] = [0, 90, 0]
    tinted = tint_tokens(frames, assignment, (2, 2)).astype(int)
    inside = (slice(None), slice(1, 4), slice(1, 4))
    # 0.8 of the token's mean and 0.2 of the pixel; 90 / 3 of the dropped patch's brightness, three tenths of that.
    assert (tinted[inside][0] == [120, 0, 80]).all()
    assert (tinted[inside][1] == [80, 0, 120]).all()
    assert (tinted[0, :, 5:] == [0, 90, 0]).all()
    assert (tinted[1, :, 5:] == 9).all()


def test_tokens_are_outlined_and_untouched_within() -> None:
    frames = np.full((1, 8, 8, 3), 100, np.uint8)
    tinted = tint_tokens(frames, np.array([[0, 0, 1, 1]]), (2, 2))
    assert (tinted[0, 4] == 55).all()
    assert (np.delete(tinted[0], 4, axis=0) == 100).all()


def test_a_few_bytes_decide_nothing() -> None:
    costs = {name: cost(name, 9, num_bytes=num_bytes) for name, num_bytes in (("pool", 24_800), ("tome", 24_790))}
    settings = {"task": "classification", "objective": "val/top1", "mode": "max", "is_share": True}
    found = compare_features([trial("pool", "gru", 0.9), trial("tome", "gru", 0.895)], costs, **settings)  # type: ignore[arg-type]
    assert found is not None
    assert {point.cost.name: set(point.fronts) for point in found.points} == {"pool": set(AXES), "tome": set()}
    assert {choice.picks["bytes"].cost.name for choice in found.choices} == {"pool"}
