"""What is said of numbers of tokens before anything starts holds of the reducers themselves."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from token_reduction import reduce_clips

from pipelines.preflight import Flight, find_problems
from vidflow.config.load import draft_config
from vidflow.models.encoder import build_encoder, shape_of, skeleton
from vidflow.models.encoder.checks import find_uneven
from vidflow.models.reduction.build import build_reducer
from vidflow.stages.experiment import Experiment

SHAPE = shape_of(skeleton("test_vit", 96))

POST = [
    ("tome", {"keep": 0.6}),
    ("tome", {"keep": 0.6, "scope": "clip"}),
    ("random_drop", {"keep": 0.6, "scope": "clip"}),
    ("algm", {"threshold": 0.3}),
    ("evs", {"prune": 0.6}),
    ("evs", {"prune": 0.0}),
    ("evs", {"threshold": 0.8}),
    ("dycoke", {}),
    ("dycoke", {"prune": 0.0}),
    ("sttm", {"spatial_threshold": 0.3}),
    ("density_peaks", {"keep": 0.3}),
    ("density_peaks", {"keep": 0.3, "frames_per_segment": 3}),
    ("density_peaks", {"keep": 0.3, "frames_per_segment": None}),
    ("divprune", {"keep": 0.3}),
    ("divprune", {"keep": 0.3, "scope": "clip"}),
    ("pool", {}),
    ("pool", {"window": [1, 3, 2]}),
    ("pool", {"window": [2, 1, 1]}),
    ("fewer_frames", {}),
    ("fewer_frames", {"stride": 1}),
    ("random", {"keep": 0.3}),
]
INSIDE = [
    ("tome", {"num_merged": 3}, [1]),
    ("tome", {"num_merged": 3}, [0, 1]),
    ("tome", {"num_merged": 0}, [0, 1]),
    ("tome", {"num_merged": [5]}, [0, 3]),
    ("tome", {"num_merged": [5, 0, 0, 4]}, [0, 3]),
    ("tome", {"num_merged": [5, 4]}, [0, -1]),
    ("tome", {"num_merged": [5, 4]}, [-3, -1]),
    ("drop", {"keep": 0.5}, [1, -1]),
    ("tome", {"keep": 0.5, "schedule": "decreasing"}, [4, -1]),
    ("tome", {"num_merged": 2, "schedule": "increasing"}, [0, 3]),
    ("vidtldr", {"num_merged": [6]}, [0, 2]),
    ("vidtldr", {"num_merged": [6, 6]}, [0, 2]),
    ("fewer_frames", {"stride": 2}, [1]),
    ("evs", {"prune": 0.4}, [1]),
    ("lower_resolution", {"keep": 0.5}, [0, 1]),
]


@pytest.mark.parametrize(("name", "settings"), POST)
def test_cached_tokens_are_uneven_where_it_is_said(name, settings):
    tokens = torch.randn(1, 6, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    tokens[:, 3, :2] = tokens[:, 2, :2]
    tokens[:, 1, :, 4:] = tokens[:, 1, :1, :1]
    reducer = build_reducer(name, place="post", **settings)
    reduced = reduce_clips(reducer, tokens, seeds=torch.tensor([1]))
    assert find_uneven(reducer, SHAPE, [-1]) == ("frames" if len(reduced.counts.unique()) > 1 else None)


@pytest.mark.parametrize(("name", "settings", "depths"), INSIDE)
def test_encoded_tokens_are_uneven_where_it_is_said(name, settings, depths):
    reducer = build_reducer(name, **settings)
    encoder = build_encoder(
        name="test_vit", weights="random:0", img_size=96, depths=depths, dtype="float32", reduction=reducer
    )
    frames = torch.randint(256, (4, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    counts = encoder(frames, num_frames=4).counts.numpy()
    said = find_uneven(reducer, SHAPE, depths)
    assert (said is not None) == (len(np.unique(counts)) > 1)
    if said is not None:
        assert (said == "depths") == (counts == counts[0]).all()


@pytest.mark.parametrize(
    ("features", "remedy"),
    [
        ("{reducer: {name: sttm}}", "other frames.*take a reducer"),
        ("{depths: [0, 1], reducer: {name: tome, settings: {num_merged: 2}}}", "other depths.*keep one depth only"),
    ],
)
def test_uneven_tokens_that_are_not_put_back_are_refused_before_anything_starts(tmp_path, features, remedy):
    path: Path = tmp_path / "experiment.yaml"
    path.write_text(
        f"root: {tmp_path}\nencoder: {{name: test_vit, weights: 'random:0', img_size: 96}}\n"
        f"features: {{base: {{}}, few: {features}}}\ntrials: {{axes: {{features: [base, few]}}}}"
    )

    assert not find(path, ("extract",))
    for steps in (("extract", "sweep"), ("sweep",), ("plan",)):
        (problem,) = find(path, steps, "trials.trial.unmerge=false")
        assert re.search(rf"got false for features 'few'.*{remedy}", problem)
    assert not find(path, ("extract", "sweep"), "trials.trial.unmerge=false", "trials.axes.features=[base]")


def find(path, steps, *overrides):
    """Return the problems of an experiment that has these stages to do."""
    draft = draft_config([path], overrides)
    return find_problems(Flight(draft, Experiment(draft.config), steps, show=False))


def test_uneven_tokens_are_said_together_with_what_else_is_wrong_with_reducers(tmp_path):
    path: Path = tmp_path / "experiment.yaml"
    path.write_text(
        f"root: {tmp_path}\nencoder: {{name: test_vit, weights: 'random:0', img_size: 96}}\n"
        "features: {few: {reducer: {name: sttm}}, wrong: {reducer: {name: tome, settings: {tokens: 37}}}}\n"
        "trials: {trial: {unmerge: false}, axes: {features: [few, wrong]}}"
    )
    wrong, few = sorted(find(path, ("extract",)))
    assert "features.wrong.reducer: " in wrong
    assert "at most the 36 patches" in wrong
    assert "got false for features 'few'" in few
