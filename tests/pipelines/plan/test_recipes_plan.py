"""The published recipes cost in the plan what their papers print."""

from pathlib import Path

import pytest

from pipelines.plan.table import _describe_macs
from vidflow.config.load import load_config
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates
from vidflow.stages.cost import TrialMacs, trial_macs

CONF = Path(__file__).parents[3] / "conf"
HEADS = ", ".join(["-1", "-1", "1", "1", *["0"] * 12])
LARGE = ("encoder.name=vit_large_patch14_clip_quickgelu_224.openai", f"adaptations.zeroi2v.offsets=[{HEADS}]")


def recipe(name: str, folder: Path, *overrides: str) -> Config:
    return load_config([CONF / name], [f"video.manifest={folder}", f"root={folder.parent / 'root'}", *overrides])


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A folder in place of the lists of Kinetics; nothing is read from it."""
    folder = tmp_path / "lists"
    folder.mkdir()
    return folder


def costs(config: Config) -> list[TrialMacs]:
    found = [trial_macs(config, trial) for trial in draw_candidates(config)[0]]
    return [macs for macs in found if macs is not None]


@pytest.mark.parametrize(
    ("overrides", "published"),
    [((), 422), (LARGE, 1946), ((*LARGE, "video.sampling.num_frames=32", "video.sampling.fps=7.5"), 7783)],
)
def test_zeroi2v_takes_the_published_gflops(lists: Path, overrides: tuple[str, ...], published: int) -> None:
    (macs,) = costs(recipe("zeroi2v.yaml", lists, *overrides))
    assert macs.clips_per_video == 3
    assert 3 * macs.forward / 1e9 == pytest.approx(published, rel=0.01)
    assert f"({3 * macs.forward / 1e9:.4g} per video of 3 clips)" in _describe_macs(macs)


def test_the_recipe_for_something_something_sees_three_squares_of_uniform_segments(lists: Path) -> None:
    config = load_config(
        [CONF / "zeroi2v.yaml", CONF / "zeroi2v_ssv2.yaml"],
        [f"video.manifest={lists}", f"root={lists.parent / 'root'}"],
    )
    (macs,), (trial,) = costs(config), draw_candidates(config)[0]
    assert (macs.clips_per_video, 3 * macs.forward / 1e9) == (3, pytest.approx(422, rel=0.01))
    assert (config.video.sampling.mode, config.video.crop, config.plain_split) == ("uniform", "three", "train")
    assert (trial.label_smoothing, trial.score_by) == (0.1, "video")
    augmentation = config.augmentations["published"]
    # What the file does not name comes from the recipe for Kinetics.
    assert (augmentation.erasing, augmentation.randaugment_layers, len(augmentation.flip_labels)) == (0.25, 4, 3)


def test_inti_takes_37_percent_less_than_the_same_adapters_on_all_frames(lists: Path) -> None:
    few, many = costs(recipe("inti.yaml", lists))
    assert 1 - few.forward / many.forward == pytest.approx(0.375, abs=0.005)


@pytest.mark.parametrize("name", ["zeroi2v", "inti"])
def test_the_recipes_become_small_on_the_demos_videos(name: str, tmp_path: Path) -> None:
    config = load_config([CONF / f"{name}.yaml", CONF / f"{name}_demo.yaml"], [f"root={tmp_path}"])
    assert config.video.manifest is None
    assert all(macs.forward < 1e9 for macs in costs(config))
    assert {trial.readout for trial in draw_candidates(config)[0]} == {"class_token"}
