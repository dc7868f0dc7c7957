"""What is wrong with feeds, adaptations, augmentations and views is said all at once, with its key."""

import pytest

from vidflow.config.load import draft_config

BASE = """\
features:
  base: {depths: [-1]}
  stream: {depths: [4], normalize: false}
adaptations: {late: {first_block: 5}}
augmentations: {usual: {flip: 0.5}}
"""


def problems(tmp_path, *overrides: str) -> list[str]:
    path = tmp_path / "mine.yaml"
    path.write_text(BASE)
    return list(draft_config([path], overrides).problems)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trials.trial.feed=shards"],
        ["trials.trial.feed=shards", "trials.trial.adaptation=late", "trials.trial.augmentation=usual"],
        ["trials.trial.feed=prefix", "trials.trial.features=stream", "trials.trial.adaptation=late"],
        ["features.base.views=4", "features.base.augmentation=usual"],
        ["resources.clips_per_pass=2", "trials.trial.feed=shards"],
        ["video.crop=three", "trials.trial.score_by=video", "trials.trial.label_smoothing=0.1"],
    ],
)
def test_what_belongs_together_is_accepted(tmp_path, overrides):
    assert problems(tmp_path, *overrides) == []


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            "adaptation=late augmentation=usual",
            ["adaptation: got 'late' with feed `features`", "augmentation: got 'usual' with feed `features`"],
        ),
        ("feed=shards adaptation=lat", ["adaptation: got 'lat', wanted a name in `adaptations`; did you mean `late`?"]),
        (
            "feed=prefix standardize=true",
            [
                "trials.trial.adaptation: got none with feed `prefix`",
                "features.base.normalize: got true, wanted false",
                "trials.trial.standardize: got true with feed `prefix`",
            ],
        ),
        ("feed=prefix features=stream adaptation=late augmentation=usual", ["`prefix`, which has no frames"]),
        ("feed=shards task=masked_tokens", ["feed: got shards for the task masked_tokens"]),
        ("feed=shards encoder_rate=0.1", ["encoder_rate: got 0.1, but nothing of the encoder is trained"]),
        (
            "feed=shards task=depth adaptation=late adaptations.late.interpolate_after=[6]",
            ["adaptations.late.interpolate_after: got [6] for the task depth"],
        ),
        ("feed=shards task=depth resources.clips_per_pass=2", ["the loss of depth is no mean over clips"]),
        ("feed=shards features.base.depths=[3,-1] resources.clips_per_pass=2", ["mix_depths has a batch norm"]),
        (
            "task=depth resources.trials.workers_per_trial=2",
            ["resources.trials.workers_per_trial: got 2, but the loss of depth is no mean over clips"],
        ),
        (
            "features.base.depths=[3,-1] resources.trials.workers_per_trial=2",
            ["resources.trials.workers_per_trial: got 2, but mix_depths has a batch norm"],
        ),
        (
            "resources.trials.workers_per_trial=2 resources.trials.num_gpus=0.5",
            ["resources.trials.num_gpus: got 0.5, but the 2 processes of a trial need a GPU each"],
        ),
        ("feed=shards features.base.reducer.name=tome", ["features.base.reducer.name: got 'tome'"]),
        (
            "feed=shards task=camera_pose augmentation=usual augmentations.usual.crop_area=[0.1,1]",
            ["augmentations.usual.crop_area: got (0.1, 1.0) for the task camera_pose"],
        ),
        (
            "feed=shards task=depth augmentation=usual augmentations.usual.randaugment_layers=2",
            ["augmentations.usual.randaugment_layers: got 2 for the task depth"],
        ),
        ("feed=shards augmentation=usual video.format=ssv2", ["augmentations.usual.flip: got 0.5, but classes"]),
        ("video.crop=three", ["trials.trial.score_by: got clip with video.crop `three`"]),
        ("task=depth label_smoothing=0.1", ["label_smoothing: got 0.1 for the task depth, which has no labels"]),
        ("augmentations.usual.crop_area=[1,0.5]", ["crop_area: got [1.0, 0.5], wanted the smaller number first"]),
        ("features.base.views=4", ["features.base.augmentation: got none for 4 views"]),
        (
            "features.base.augmentation=usual",
            ["features.base.augmentation: got 'usual', but the only view is the plain"],
        ),
    ],
)
def test_what_does_not_belong_together_is_said(tmp_path, overrides, wanted):
    words = [word if "." in word.partition("=")[0] else f"trials.trial.{word}" for word in overrides.split()]
    found = problems(tmp_path, *words)
    for each in wanted:
        assert any(each in problem for problem in found), found
    assert len(found) == len(wanted), found
