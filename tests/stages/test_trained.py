import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from vidflow.errors import VidflowError
from vidflow.records import EpochResult, StageManifest, TrialResult
from vidflow.stages.address import Address
from vidflow.stages.finish import publish_manifest
from vidflow.stages.trained import FinishedSweep, is_usable, predict_command, read_sweep
from vidflow.store.layout import TRIAL_RESULT, publish_json


def finish_sweep(
    root: Path, trials: dict[str, tuple[str, list[dict[str, float]]]], *, failed: str = "", **ranking: str
) -> FinishedSweep:
    """A finished sweep of trials, each with its task and the metrics of its epochs, the first of which is the best."""
    for key, (task, epochs) in trials.items():
        history = [EpochResult(epoch=n, metrics=m, is_best=n == 1) for n, m in enumerate(epochs, 1)]
        settings = {"task": task, "core": f"core of {key}"}
        result = TrialResult(
            key=key,
            settings=settings,
            status="failed" if key == failed else "completed",
            history=tuple(history),
            num_parameters=1,
            directory=root / "trials" / key,
        )
        values = asdict(result)
        del values["directory"]
        publish_json(result.directory / TRIAL_RESULT, {**values, "files": []})
    settings = {"trials": {"objective": None, "mode": None, **ranking}, "features": {}}
    address = Address(directory=root / "sweeps" / "s", settings=settings)
    details = {"run_id": "r", "trials": [*trials, "gone"], "runs": {key: f"run of {key}" for key in trials}}
    manifest = StageManifest(
        stage="sweep",
        fingerprint="s",
        settings=settings,
        num_files=1,
        num_bytes=1,
        worker_seconds=1.0,
        wall_seconds=1.0,
        details=details,
    )
    publish_manifest(address, manifest)
    sweep = read_sweep(address.directory)
    assert sweep is not None
    return sweep


def test_the_best_trial_is_that_of_the_objective_of_the_config(tmp_path):
    trials = {
        "a": ("classification", [{"val/top1": 0.5, "val/loss": 0.1}, {"val/top1": 0.9, "val/loss": 0.9}]),
        "b": ("classification", [{"val/top1": 0.6, "val/loss": 0.2}]),
        "c": ("classification", []),
    }
    sweep = finish_sweep(tmp_path / "one", trials)
    assert sweep.best_trial().key == "b"
    assert sweep.runs["b"] == "run of b"
    # As in the report, what a trial scored before it failed does not count.
    assert finish_sweep(tmp_path / "half", trials, failed="b").best_trial().key == "a"
    assert finish_sweep(tmp_path / "two", trials, objective="val/loss", mode="min").best_trial().key == "a"
    with pytest.raises(VidflowError, match="no trial of this sweep has succeeded"):
        finish_sweep(tmp_path / "three", {"c": trials["c"]}).best_trial()


def test_of_several_tasks_none_is_best_and_the_best_of_each_is_named(tmp_path):
    trials = {
        "a": ("depth", [{"val/abs_rel": 0.5}]),
        "b": ("depth", [{"val/abs_rel": 0.4}]),
        "c": ("point_tracking", [{"val/average_jaccard": 0.3}]),
    }
    with pytest.raises(VidflowError, match="a sweep over 2 tasks; name a trial:") as caught:
        finish_sweep(tmp_path, trials).best_trial()
    first, second = str(caught.value).splitlines()[1:]
    assert "depth, core=core of b, val/abs_rel 0.400: vidflow predict" in first
    assert f"{tmp_path}/trials/c VIDEO --point X,Y" in second


def test_the_command_that_predicts_names_the_run_and_its_store_but_no_password():
    command = predict_command("f" * 32, tracking_uri="https://ann:secret@host:5000")
    words = shlex.split(command)
    assert words[:4] == ["vidflow", "predict", "f" * 32, "VIDEO"]
    assert words[4:6] == ["--tracking-uri", "https://host:5000"]
    assert predict_command("my runs/trials/k") == "vidflow predict 'my runs/trials/k' VIDEO --out predicted.mp4"


def test_a_trial_that_follows_something_is_told_what_to_follow():
    assert "--box X0,Y0,X1,Y1" in predict_command("run", task="box_tracking")
    assert "--point X,Y" in predict_command("run", task="point_tracking")


@pytest.mark.parametrize(
    ("settings", "identity", "expected"),
    [
        ({"core": "gru"}, {}, True),
        ({"core": "vtm", "vtm_groups": None}, {}, False),
        ({"core": "vtm", "vtm_groups": [1, 1, 1]}, {}, True),
        ({"core": "gru"}, {"encoder": {"adaptation": {"offsets": [-1, 0]}}}, True),
        ({"core": "gru"}, {"encoder": {"adaptation": {"offsets": [-1, 1]}}}, False),
        ({"core": "gru"}, {"encoder": {"adaptation": {"offsets": [], "temporal_embedding": True}}}, False),
        ({"core": "gru"}, {"encoder": {"adaptation": {"interpolate_after": [3]}}}, False),
        ({"core": "gru"}, {"features": {"encoder": {"clip_parts": {"offsets": [-1], "num_frames": None}}}}, True),
        ({"core": "gru"}, {"features": {"encoder": {"clip_parts": {"offsets": [], "num_frames": 8}}}}, False),
        ({"core": "gru"}, {"features": {"encoder": {"family": "videomae"}}}, False),
        ({"core": "gru", "task": "masked_tokens"}, {"features": {"encoder": {"family": "videomae"}}}, True),
    ],
)
def test_what_sees_clips_or_later_frames_is_not_recommended_for_prediction(settings, identity, expected):
    assert is_usable({"task": "classification", **settings}, identity) == expected
