"""Finished shards, looked at again: under another limit, and after their videos changed while a command was at work."""

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import extract, report, sweep
from pipelines.progress import finished as finished_line
from vidflow.config.load import load_config
from vidflow.errors import VidflowError
from vidflow.stages.experiment import Experiment
from vidflow.video.ffmpeg import write_h264

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))
import clip_factory as factory

CONFIG = """\
root: {folder}/root
video: {{manifest: {folder}/manifest.csv, sampling: {{num_frames: 4}}, size: 32}}
shards: {{max_reject_fraction: 1.0}}
encoder: {{img_size: 32, weights: 'random:0', name: test_vit}}
features: {{base: {{depths: [0]}}}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, in_one_ray):
    """A folder with three videos and their shards, from which one of them was left out as it was decoded."""
    folder = tmp_path_factory.mktemp("finished")
    for number, name in enumerate(("a.mp4", "b.mp4")):
        write_h264(folder / name, np.full((12, 64, 64, 3), 90 * number, np.uint8), fps=12)
    factory.mux(folder / "c.mp4", frames=list(factory.numbered_frames(12, height=48, width=64)))
    factory.damage(folder / "c.mp4", packet=4)
    rows = [("a.mp4", "x", "train"), ("b.mp4", "y", "val"), ("c.mp4", "y", "train")]
    with (folder / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    done = in_one_ray("shard", folder / "config.yaml")
    assert "2 clips in 1 shards, 1 rejects" in done.stderr
    return folder


@pytest.fixture
def again(finished):
    """The same folder, as it was."""
    kept = finished.with_name("kept")
    shutil.copytree(finished, kept)
    yield finished
    shutil.rmtree(finished)
    kept.rename(finished)


def test_shards_with_more_rejects_than_a_lower_limit_allows_are_not_done(finished, in_one_ray):
    config = finished / "config.yaml"
    for limit, is_done in (("1.0", True), ("0.4", True), ("0.3", False)):
        experiment = Experiment(load_config([config], [f"shards.max_reject_fraction={limit}"]))
        assert (finished_line(experiment, "shard") is not None) == is_done
    done = in_one_ray("shard", config, "shards.max_reject_fraction=0.3")
    assert done.returncode == 3
    assert "1 of 3 rows are rejected (1 DecodeError), more than shards.max_reject_fraction = 0.3" in done.stderr
    assert finished_line(Experiment(load_config([config])), "shard")


@pytest.mark.parametrize("stage", [extract, sweep, report])
def test_a_video_that_changes_while_a_command_is_at_work_is_one_sentence(again, stage):
    with (again / "a.mp4").open("ab") as stream:
        stream.write(bytes(16))
    with pytest.raises(VidflowError, match="changed while this command was at work; run the same command again"):
        stage.main(Experiment(load_config([again / "config.yaml"])))


@pytest.mark.parametrize("stage", [extract, sweep, report])
def test_shards_that_are_gone_while_a_command_is_at_work_are_one_sentence(again, stage):
    for tar in again.glob("root/shards/*/*.tar"):
        os.unlink(tar)
    with pytest.raises(VidflowError, match="changed while this command was at work; run the same command again"):
        stage.main(Experiment(load_config([again / "config.yaml"])))


@pytest.mark.parametrize("stage", [sweep, report])
def test_features_that_are_not_there_are_one_sentence(finished, stage):
    with pytest.raises(VidflowError, match="changed while this command was at work; run the same command again"):
        stage.main(Experiment(load_config([finished / "config.yaml"])))
