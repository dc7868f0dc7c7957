"""The settings of VTM and of the adapter: what is refused, and that older trials keep their keys."""

import pytest

from vidflow.config.fingerprints import fingerprint, trial_settings
from vidflow.config.load import draft_config
from vidflow.config.schema import Adaptation, Config, Trial, Trials
from vidflow.training.checks import find_group_problems


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["trials.trial.vtm_groups=[2,3,6]"], "trials.trial.vtm_groups: got [2, 3, 6], wanted each a multiple of"),
        (["trials.trial.vtm_groups=[2,4]"], "trials.trial.vtm_groups"),
        (["trials.trial.vtm_factor=0"], "trials.trial.vtm_factor: got 0"),
        (["trials.trial.vtm_share=1.5"], "trials.trial.vtm_share: got 1.5"),
        (["trials.trial.token_adapter=-1"], "trials.trial.token_adapter: got -1"),
        (
            ["trials.trial.core=vtm", "trials.trial.task=depth"],
            "trials.trial.core: got `vtm` for the task depth, which has ground truth for every frame",
        ),
        (["trials.axes.vtm_groups=[[1,1,1]]"], "trials.axes.vtm_groups"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(overrides, wanted):
    assert wanted in draft_config([], overrides).problems[0]


def test_an_adapter_a_factor_and_a_share_are_axes():
    axes = ["trials.axes={core: [vtm, gru], token_adapter: [0, 0.25], vtm_factor: [2, 6], vtm_share: [0.8, 1]}"]
    assert list(draft_config([], axes).problems) == []


def test_at_their_defaults_they_are_in_no_key():
    def key(**changes):
        return fingerprint(trial_settings(Config(), Trial(**changes), "features", "val/top1", "max"))

    settings = trial_settings(Config(), Trial(), "features", "val/top1", "max")
    assert not {"vtm_groups", "vtm_factor", "vtm_share", "token_adapter"} & settings.keys()
    changed = [{"vtm_groups": (1, 1, 1)}, {"vtm_factor": 2}, {"vtm_share": 0.8}, {"token_adapter": 0.25}]
    assert len({key(), *(key(**change) for change in changed)}) == 5


@pytest.mark.parametrize(
    ("frames", "trial", "seen"),
    [
        (16, {"vtm_groups": (1, 2, 8)}, None),
        (12, {"vtm_groups": (1, 2, 8)}, 12),
        (16, {}, None),
        # Two of InTI's layers make four frames of 16.
        (16, {"vtm_groups": (1, 2, 8), "feed": "shards", "adaptation": "inti"}, 4),
    ],
)
def test_groups_must_divide_the_frames_that_the_core_sees(frames, trial, seen):
    config = Config(
        adaptations={"inti": Adaptation(interpolate_after=[1, 2])}, trials=Trials(trial=Trial(core="vtm", **trial))
    )
    found = list(find_group_problems(config, num_frames=frames))
    start = f"trials.trial.vtm_groups: got [1, 2, 8] for clips of {seen} frames; wanted"
    assert [problem.startswith(start) for problem in found] == [True] * (seen is not None)
