"""Three squares of each clip that is evaluated, from the command to the page, on stored features and on frames."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_experiment import TINY

from vidflow.video.ffmpeg import write_h264

WIDE, CLASSES, FRAMES = (32, 64), ("left", "right"), 8
MORE = """
adaptations: {late: {first_block: 1, rank_ratio: 0.1}}
"""


def write_videos(folder):
    """Write wide videos of two classes: noise, and brighter on one side."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 10)):
        for index in range(number):
            label = index % 2
            frames = rng.integers(0, 128, (FRAMES, *WIDE, 3), dtype=np.uint8)
            frames[:, :, 32 * label : 32 * (label + 1)] += 100
            path = folder / split / CLASSES[label] / f"{index}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_h264(path, frames, fps=8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_squares_are_answered_as_one_video_from_the_command_to_the_page(in_one_ray, tmp_path):
    write_videos(tmp_path / "videos")
    path = tmp_path / "squares.yaml"
    path.write_text(TINY.format(root=tmp_path / "root") + MORE)
    given = [f"video.manifest={tmp_path / 'videos'}", "video.crop=three", "trials.axes.core=[mean]"]
    given += ["features.base.depths=[-1]"]  # so that the adapted blocks are before the tapped one
    given += ["video.sampling={mode: spread, num_frames: 4, num_clips: 2}"]
    refused = in_one_ray("run", path, *given)
    assert (refused.returncode, "score_by: got clip with video.crop `three`" in refused.stderr) == (2, True)
    given += ["trials.trial.score_by=video", "trials.trial.label_smoothing=0.1"]
    done = in_one_ray("run", path, *given)
    assert done.returncode == 0, done.stderr
    # 12 training videos of 2 clips, 10 validation videos of 2 clips in 3 squares.
    assert "shard: 84 clips" in done.stderr
    (page,) = (tmp_path / "root").glob("reports/*/report.html")
    (trial,) = (tmp_path / "root").glob("trials/*/")
    best = [each for each in json.loads((trial / "result.json").read_text())["history"] if each["is_best"]][-1][
        "metrics"
    ]
    words = re.sub(r"<[^>]*>", "", page.read_text())
    assert "on 10 validation videos" in words
    stored = load_file(trial / "predictions.safetensors")
    assert stored["num_clips"].tolist() == [6] * 10
    assert np.mean(stored["logits"].argmax(-1) == stored["labels"]) == best["val/top1"]
    # The same number by another way, and every clip made again.
    measured = in_one_ray("evaluate", path, *given, f"evaluate.trial={trial}")
    assert measured.returncode == 0, measured.stderr
    assert "60 clips of 10 videos" in measured.stdout
    assert float(re.search(r"top1 +([0-9.]+)", measured.stdout)[1]) == pytest.approx(best["val/top1"], rel=1e-5)
    again = in_one_ray("verify", "--deep", "84", path, *given)
    assert again.returncode == 0, again.stdout + again.stderr
    # Frames of the same shards, without features.
    done = in_one_ray("run", path, *given, "trials.trial.feed=shards", "trials.trial.adaptation=late")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "root").glob("shards/*/"))) == 1
