import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.records import EpochResult, Reject, TrialResult
from vidflow.report.tables import (
    class_scores,
    colour_setting,
    confusion_matrix,
    describe_settings,
    group_by_seed,
    group_rejects,
    most_confused,
    rank_trials,
    shared_settings,
    varying_settings,
)


def trial(
    score: float | None, *, status: str = "completed", **settings: str | float | bool | list[int] | None
) -> TrialResult:
    metrics = {} if score is None else {"val/top1": score, "val/top1_low": score - 0.1, "val/top1_high": score + 0.1}
    history = () if score is None else (EpochResult(epoch=1, metrics=metrics, seconds=2.0, is_best=True),)
    return TrialResult(
        key=str(settings), settings=settings, status=status, history=history, num_parameters=7, directory=Path("/d")
    )


def test_the_best_trial_comes_first_in_either_direction() -> None:
    trials = [trial(0.2, seed=0), trial(0.9, seed=1), trial(0.5, seed=2)]
    best_first = rank_trials(trials, "val/top1", "max")
    assert [row.score for row in best_first] == [0.9, 0.5, 0.2]
    assert [row.is_best for row in best_first] == [True, False, False]
    assert (best_first[0].low, best_first[0].high) == pytest.approx((0.8, 1.0))
    assert [row.score for row in rank_trials(trials, "val/top1", "min")] == [0.2, 0.5, 0.9]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_trial_that_failed_or_has_no_score_is_never_the_best(mode: str) -> None:
    trials = [trial(0.9 if mode == "max" else 0.1, status="failed"), trial(math.nan), trial(None), trial(0.5)]
    ranked = rank_trials(trials, "val/top1", mode)
    assert [row.score for row in ranked][:3] == [0.5, None, None]
    assert [row.is_best for row in ranked] == [True, False, False, False]
    assert ranked[3].failed
    assert [row.is_best for row in rank_trials(trials[:3], "val/top1", mode)] == [False, False, False]


def test_without_trials_there_is_nothing_to_say() -> None:
    assert rank_trials([], "val/top1", "max") == []
    assert group_by_seed([], "max") == []
    assert shared_settings([]) == {}
    assert colour_setting([]) == "core"


def test_settings_are_either_shared_or_varying_and_the_seed_is_named_last() -> None:
    trials = [trial(0.5, seed=s, core=c, epochs=20, mix=m) for s, c, m in [(0, "gru", True), (1, "mean", 1)]]
    assert varying_settings(trials) == ["core", "mix", "seed"]
    assert shared_settings(trials) == {"epochs": 20}
    assert rank_trials(trials, "val/top1", "max")[0].settings == {"core": "gru", "mix": True, "seed": 0}


def test_a_setting_may_be_a_list() -> None:
    trials = [trial(0.5, seed=s, vtm_groups=g) for s, g in [(0, [1, 1, 1]), (1, [1, 1, 1]), (0, [1, 2, 4])]]
    assert varying_settings(trials) == ["vtm_groups", "seed"]
    assert [len(group.trials) for group in group_by_seed(rank_trials(trials, "val/top1", "max"), "max")] == [2, 1]


def test_colours_follow_the_core_unless_all_trials_share_it() -> None:
    assert colour_setting([trial(0.0, core="gru", lr=1.0, seed=0), trial(0.0, core="mean", lr=2.0, seed=1)]) == "core"
    assert colour_setting([trial(0.0, core="gru", lr=1.0, seed=0), trial(0.0, core="gru", lr=2.0, seed=1)]) == "lr"
    assert colour_setting([trial(0.0, core="gru", seed=0), trial(0.0, core="gru", seed=1)]) == "core"


def test_names_and_numbers_are_told_apart_on_one_line() -> None:
    assert (
        describe_settings({"core": "gru", "learning_rate": 0.0003, "seed": 2}) == "gru · learning_rate 0.0003 · seed 2"
    )


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 2]), st.floats(0, 1), st.booleans()), max_size=12),
    st.sampled_from(["max", "min"]),
)
def test_groups_over_seeds_agree_with_counting_one_by_one(rows: list[tuple[str, int, float, bool]], mode: str) -> None:
    trials = [
        trial(score, core=core, num_layers=layers, seed=seed, status="failed" if failed else "completed")
        for seed, (core, layers, score, failed) in enumerate(rows)
    ]
    groups = group_by_seed(rank_trials(trials, "val/top1", mode), mode)

    expected = {}
    for core, layers, score, failed in rows:
        if not failed:
            expected.setdefault((core, layers), []).append(score)
    found = {
        (g.trials[0].result.settings["core"], g.trials[0].result.settings["num_layers"]): (
            len(g.trials),
            g.mean,
            g.lowest,
            g.highest,
        )
        for g in groups
    }
    assert found == {
        key: (len(scores), pytest.approx(sum(scores) / len(scores)), min(scores), max(scores))
        for key, scores in expected.items()
    }
    means = [group.mean for group in groups]
    assert means == sorted(means, reverse=mode == "max")


def test_rejects_are_grouped_by_stage_and_reason_with_the_most_frequent_first() -> None:
    rows = [("scan", "Truncated"), ("shard", "Truncated"), ("scan", "Empty"), ("scan", "Truncated")]
    rejects = [Reject(key="", path=f"{i}.mp4", stage=s, reason=r, message="m") for i, (s, r) in enumerate(rows)]
    groups = group_rejects(rejects)
    assert [(g.stage, g.reason, [r.path for r in g.rejects]) for g in groups] == [
        ("scan", "Truncated", ["0.mp4", "3.mp4"]),
        ("scan", "Empty", ["2.mp4"]),
        ("shard", "Truncated", ["1.mp4"]),
    ]


def test_a_confusion_matrix_agrees_with_counting_one_by_one() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    expected = np.zeros((6, 6), dtype=int)
    for label, prediction in zip(labels, predicted, strict=True):
        expected[label, prediction] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, 6), expected)
    # A narrow integer type must not overflow on the way.
    np.testing.assert_array_equal(confusion_matrix(labels.astype(np.int8), predicted.astype(np.int8), 6), expected)


def test_a_wide_confusion_matrix_of_narrow_integers_does_not_overflow() -> None:
    labels = np.array([120], dtype=np.int8)
    assert confusion_matrix(labels, labels, 174)[120, 120] == 1


def test_the_most_confused_pairs_leave_out_what_is_right_and_what_is_empty() -> None:
    confusion = np.array([[9, 1, 0], [4, 2, 0], [0, 0, 5]])
    pairs = [(p.label, p.predicted, p.count, p.total) for p in most_confused(confusion, 10)]
    assert pairs == [(1, 0, 4, 6), (0, 1, 1, 10)]
    assert len(most_confused(confusion, 1)) == 1
    assert most_confused(np.eye(3, dtype=int), 10) == []


def test_classes_come_worst_first_and_those_without_clips_last() -> None:
    confusion = np.array([[9, 1, 0], [0, 0, 0], [4, 0, 2]])
    assert [(c.label, c.hits, c.total) for c in class_scores(confusion)] == [(2, 2, 6), (0, 9, 10), (1, 0, 0)]
