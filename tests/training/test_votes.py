"""The mean of the probabilities of its clips decides on a video."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidflow.config.schema import Trial
from vidflow.config.tasks import Objective
from vidflow.errors import VidflowError
from vidflow.models.tasks import build_metric
from vidflow.report.results import read_classified
from vidflow.training.baselines import baseline_metrics
from vidflow.training.snapshot import PREDICTIONS, load_result, read_tensors
from vidflow.training.trial import run_trial
from vidflow.training.votes import VideoVotes


def test_a_sure_clip_outvotes_two_that_hardly_lean_the_other_way():
    votes, metric = VideoVotes(["a", "b", "a", "a"]), build_metric("classification")
    shares = torch.tensor([[0.45, 0.55], [0.2, 0.8], [0.4, 0.6], [0.9, 0.1]])
    labels = torch.tensor([0, 1, 0, 0])
    for part in ([0, 1], [2, 3]):
        votes.add(part, {"logits": shares[part].log()[:, None]}, {"label": labels[part]})
    votes.count(metric)
    # Clip by clip, only one of the three clips of `a` is right.
    assert metric.compute()["top1"] == 1.0
    assert metric.confusion.tolist() == [[1, 0], [0, 1]]


def test_a_trial_scored_by_video_counts_each_video_once(tmp_path, feature_set):
    rng = np.random.default_rng(0)
    splits, labels = ["train"] * 8 + ["val"] * 12, [index % 2 for index in range(8)] + [0] * 6 + [1] * 6
    reader = feature_set(tmp_path / "features", rng.normal(size=(20, 2, 1, 3, 16)), labels, splits)
    trial = Trial(
        core="mean", num_layers=1, readout_dim=16, readout_heads=2, epochs=1, batch_size=5, precision="float32"
    )
    reader.videos[8:] = [f"video{place // 3}" for place in range(12)]

    def run(name):
        where = {"directory": tmp_path / name, "objective": Objective("val/top1", "max"), "device": "cpu"}
        (epoch,) = run_trial(replace(trial, score_by=name), reader, key="k", **where)
        return epoch.metrics

    by_clip, by_video = run("clip"), run("video")
    # What is stored for the report is what was counted: a row per video, with the mean of its clips' probabilities.
    result = load_result(tmp_path / "video")
    assert result is not None
    answered = read_classified(result)
    assert answered is not None
    assert answered.counted == "video"
    assert [reader.keys[index] for index in answered.indices] == reader.keys[8::3]
    assert np.trace(answered.confusion) / answered.confusion.sum() == by_video["val/top1"]
    stored, _ = read_tensors(tmp_path / "clip" / PREDICTIONS)
    means = stored["logits"].softmax(-1).unflatten(0, (4, 3)).mean(1)
    np.testing.assert_allclose(answered.probabilities, means.max(-1).values, rtol=1e-6)
    hits = means.argmax(-1) == stored["labels"].unflatten(0, (4, 3))[:, 0]
    assert by_video["val/top1"] == hits.double().mean().item()
    assert by_video["val/loss"] == by_clip["val/loss"]
    assert by_video["val/top1_high"] - by_video["val/top1_low"] > by_clip["val/top1_high"] - by_clip["val/top1_low"]


def test_the_trivial_answer_counts_what_the_trials_count(tmp_path, feature_set):
    splits, labels = ["train"] * 3 + ["val"] * 4, [0, 0, 1, 0, 0, 0, 1]
    reader = feature_set(tmp_path / "features", np.zeros((7, 2, 1, 3, 16)), labels, splits)
    reader.videos[3:] = ["long", "long", "long", "short"]
    assert baseline_metrics("classification", reader)["val/top1"] == 0.75
    assert baseline_metrics("classification", reader, by_video=True)["val/top1"] == 0.5
    reader.videos[4] = None
    with pytest.raises(VidflowError, match=r"an older vidflow made it.*trials.trial.score_by=clip"):
        baseline_metrics("classification", reader, by_video=True)
