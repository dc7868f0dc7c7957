from pathlib import Path

import pytest

from vidflow.config.load import draft_config, load_config
from vidflow.config.search import apply_overrides, draw_candidates

DEMO = Path(__file__).parents[2] / "conf" / "demo.yaml"


def candidates(*overrides):
    return draw_candidates(load_config([DEMO], overrides))[0]


def test_a_grid_is_every_combination_once():
    drawn = candidates("trials.axes.core=[mean,gru]", "trials.axes.seed=[0,1,2]")
    assert [(trial.core, trial.seed) for trial in drawn] == [(c, s) for c in ("mean", "gru") for s in (0, 1, 2)]


def test_no_axes_give_the_one_trial():
    config = load_config([DEMO])
    assert draw_candidates(config)[0][0].core == "mean"
    assert len(candidates("trials.axes={core: [gru]}")) == 1


def test_a_random_search_is_the_same_for_the_same_seed_and_stays_in_its_ranges():
    space = [
        "trials.algorithm=random",
        "trials.num_samples=12",
        "trials.axes.learning_rate={low: 1e-4, high: 1e-2, log: true}",
    ]
    first, again, other = candidates(*space), candidates(*space), candidates(*space, "trials.seed=1")
    assert first == again != other
    assert len(first) == 12
    assert all(1e-4 <= trial.learning_rate <= 1e-2 for trial in first)


def test_a_value_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match=r"epochs: got 'many'"):
        apply_overrides(load_config([DEMO]).trials.trial, {"epochs": "many"})


def test_an_axis_may_have_null_among_its_values():
    drawn = candidates("trials.axes={core: [gru], init_from: [null, abc], train_fraction: [0.1, 1.0]}")
    assert [trial.init_from for trial in drawn] == [None, None, "abc", "abc"]


def test_a_share_of_hidden_frames_that_leaves_none_or_all_visible_is_refused():
    for ratio, visible in ((0.95, 0), (1e-12, 16)):
        settings = [f"trials.trial.mask_ratio={ratio}", "trials.trial.task=masked_tokens"]
        (problem,) = draft_config([DEMO], settings).problems
        assert f"trials.trial.mask_ratio: got {ratio}, which leaves {visible} of 16 frames visible" in problem
    assert not draft_config([DEMO], ["trials.trial.mask_ratio=0.95"]).problems  # no other task reads it
