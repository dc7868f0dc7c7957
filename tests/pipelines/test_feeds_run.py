"""Trials on frames, on a stored stream and on views, from the command to the page."""

import json
from collections import Counter

import pytest
from tiny_experiment import TINY

from vidflow.config.load import load_config
from vidflow.stages.experiment import Experiment
from vidflow.training.snapshot import BEST, read_tensors

MORE = """
adaptations: {late: {first_block: 1, offsets: [1, -1], rank_ratio: 0.1}}
augmentations: {usual: {crop_area: [0.5, 1], erasing: 0.25}}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_feeds_run_from_the_command_to_the_page_and_frames_need_no_features(here, in_one_ray, tmp_path):
    path = tmp_path / "feeds.yaml"
    path.write_text(TINY.format(root=tmp_path / "root") + MORE)
    sampled = ["video.sampling={mode: spread, num_frames: 4, num_clips: 2}", "trials.trial.score_by=video"]
    sampled += ["features.base.depths=[-1]", "trials.axes.core=[mean]"]
    frames = ["trials.trial.feed=shards", "trials.trial.adaptation=late"]
    done = in_one_ray("run", path, *sampled, *frames, "trials.trial.augmentation=usual")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "root" / "features").glob("*"))
    (page,) = (tmp_path / "root").glob("reports/*/report.html")
    assert "waiting for data" in page.read_text()
    shard = next((tmp_path / "root").glob("shards/*/*.tar"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = in_one_ray("sweep", path, *sampled, *frames, "trials.trial.augmentation=usual", "trials.trial.seed=1")
    assert done.returncode == 1
    assert "its bytes are not those that were written" in done.stderr
    assert "trials failed" not in done.stderr
    stream = ["features={stream: {depths: [0], normalize: false}}", "trials.trial.features=stream"]
    frames[0] = "trials.trial.feed=prefix"
    done = in_one_ray("run", path, *sampled, *frames, *stream)
    assert done.returncode == 0, done.stderr
    viewed = ["features.base.views=3", "features.base.augmentation=usual"]
    done = in_one_ray("run", path, *sampled, *viewed)
    assert done.returncode == 0, done.stderr
    reader = Experiment(load_config([path], sampled)).clips_of("base", "features")
    assert set(Counter(reader.videos).values()) == {2}
    assert len(reader.videos) == 120
    feeds = {}
    for file in (tmp_path / "root").glob(f"trials/*/{BEST}"):
        identity = read_tensors(file)[1]["identity"]
        result = json.loads((file.parent / "result.json").read_text())
        feeds[identity["settings"]["feed"]] = result["history"][-1]["metrics"]
    assert feeds.keys() == {"features", "prefix", "shards"}
    listed = here("ls", tmp_path / "root").stdout.splitlines()
    users = [line.split("  ")[-1].strip() for line in listed if line.split()[1:2] == ["done"]]
    assert users[0].endswith(", 1 trial")  # the shards, by the trial that reads frames
    assert sum(each.endswith(", 1 trial") for each in users[1:4]) == 2  # the plain tokens are read by none
    assert all("train/wait" in feeds[feed] for feed in ("prefix", "shards"))
    # 20 videos of two clips each: shares of twentieths.
    assert all((20 * metrics["val/top1"]) % 1 == pytest.approx(0, abs=1e-9) for metrics in feeds.values())
