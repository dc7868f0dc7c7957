import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vidflow.config.schema import Trial
from vidflow.config.tasks import Objective
from vidflow.errors import ConfigError, VidflowError
from vidflow.store.layout import TRIAL_RESULT
from vidflow.training.snapshot import (
    BEST,
    LAST,
    PREDICTIONS,
    load_result,
    read_snapshot,
    read_tensors,
    write_result,
)
from vidflow.training.trial import run_trial

# Depth mixing has batch statistics, and the core has dropout and stochastic depth: all that a resume could get wrong.
TRIAL = Trial(
    core="mamba_mix",
    num_layers=1,
    num_heads=2,
    readout_dim=16,
    readout_heads=2,
    epochs=4,
    batch_size=7,
    learning_rate=3e-3,
    precision="float32",
    seed=3,
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, feature_set):
    tokens = np.random.default_rng(1).normal(size=(20, 3, 2, 3, 16))
    labels = [index % 2 for index in range(20)]
    return feature_set(tmp_path_factory.mktemp("two-depths"), tokens, labels, ["train"] * 15 + ["val"] * 5)


@pytest.fixture(scope="module")
def undisturbed(reader, tmp_path_factory):
    """The folder of a trial that nobody killed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    assert len(list(_run(reader, directory))) == TRIAL.epochs
    return directory


def _run(reader, directory, trial=TRIAL, *, key="key", objective="val/loss", mode="min"):
    return run_trial(trial, reader, directory=directory, key=key, objective=Objective(objective, mode), device="cpu")


def _timeless(history):
    """Results without what a clock says."""
    return [
        (r.epoch, r.is_best, {name: v for name, v in r.metrics.items() if name != "train/clips_per_second"})
        for r in history
    ]


def _assert_same_trial(first, second):
    assert _timeless(load_result(first).history) == _timeless(load_result(second).history)
    for file in (BEST, PREDICTIONS):
        (one, about_one), (two, about_two) = read_tensors(first / file), read_tensors(second / file)
        assert about_one == about_two
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 1, 1], [2, 1]])
def test_a_trial_killed_and_resumed_equals_an_undisturbed_one_bit_for_bit(tmp_path, reader, undisturbed, stops):
    epochs = []
    for stop in stops:
        results = _run(reader, tmp_path)
        epochs += [next(results).epoch for _ in range(stop)]
        results.close()
        # Another process has another past.
        torch.rand(sum(stops))
    epochs += [result.epoch for result in _run(reader, tmp_path)]
    assert epochs == [1, 2, 3, 4]
    _assert_same_trial(tmp_path, undisturbed)


@pytest.mark.parametrize("victim", [LAST, BEST, PREDICTIONS, TRIAL_RESULT])
@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_trial_killed_before_any_file_appears_equals_an_undisturbed_one(
    tmp_path, reader, undisturbed, victim, epoch, monkeypatch
):
    replace = type(tmp_path).replace
    seen = []

    def die(path, target):
        seen.append(target.name)
        if target.name == victim and seen.count(LAST) >= epoch:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", die)
    try:
        # Not every epoch is a best one, so a victim may be spared; then the trial is simply complete.
        list(_run(reader, tmp_path))
    except KeyboardInterrupt:
        assert load_result(tmp_path) is None
    monkeypatch.undo()
    list(_run(reader, tmp_path))
    _assert_same_trial(tmp_path, undisturbed)


def test_every_reported_epoch_is_on_disk_before_it_is_reported(tmp_path, reader):
    for result in _run(reader, tmp_path):
        done = load_result(tmp_path)
        if result.epoch < TRIAL.epochs:
            assert done is None
            assert read_snapshot(tmp_path).history[-1] == result
        else:
            assert done.status == "completed"
            assert done.history[-1] == result
        best = max(r.epoch for r in (done or read_snapshot(tmp_path)).history if r.is_best)
        assert read_tensors(tmp_path / BEST)[1]["epoch"] == best


def test_every_epoch_drops_out_something_else(tmp_path, feature_set):
    # Clips that are all alike, in one batch, and no learning rate to speak of: only dropout can tell the epochs apart.
    clip = np.random.default_rng(1).normal(size=(1, 3, 2, 3, 16))
    alike = feature_set(tmp_path / "alike", clip.repeat(20, 0), [1] * 20, ["train"] * 15 + ["val"] * 5)
    frozen = dataclasses.replace(TRIAL, batch_size=15, learning_rate=1e-30)
    losses = [result.metrics["train/loss"] for result in _run(alike, tmp_path / "with", frozen)]
    assert len(set(losses)) == TRIAL.epochs
    without = dataclasses.replace(frozen, core="gru")
    losses = [result.metrics["train/loss"] for result in _run(alike, tmp_path / "without", without)]
    assert len(set(losses)) == 1


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_epoch_is_the_first_with_the_best_objective(tmp_path, reader, mode):
    history = list(_run(reader, tmp_path, objective="train/loss", mode=mode))
    values = [result.metrics["train/loss"] for result in history]
    assert load_result(tmp_path).best.epoch == 1 + values.index(min(values) if mode == "min" else max(values))
    assert history[0].is_best


def test_a_completed_trial_is_not_trained_again(reader, undisturbed):
    before = {path.name: path.stat().st_mtime_ns for path in undisturbed.iterdir()}
    assert list(_run(reader, undisturbed)) == []
    assert {path.name: path.stat().st_mtime_ns for path in undisturbed.iterdir()} == before


def test_a_trial_that_was_stopped_goes_on_when_asked_for_again(tmp_path, reader, undisturbed):
    results = _run(reader, tmp_path)
    next(results)
    results.close()
    assert write_result(tmp_path, "stopped").status == "stopped"
    resumed = _run(reader, tmp_path)
    assert next(resumed).epoch == 2
    assert load_result(tmp_path) is None
    list(resumed)
    _assert_same_trial(tmp_path, undisturbed)


def test_a_damaged_snapshot_costs_time_and_nothing_else(tmp_path, reader, undisturbed, caplog):
    results = _run(reader, tmp_path)
    next(results), next(results)
    results.close()
    path = tmp_path / LAST
    path.write_bytes(path.read_bytes()[:-100])
    assert [result.epoch for result in _run(reader, tmp_path)] == [1, 2, 3, 4]
    assert "trial key starts again" in caplog.text
    _assert_same_trial(tmp_path, undisturbed)


def test_leftovers_of_a_killed_writer_go_away(tmp_path, reader):
    tmp_path.joinpath(f".{LAST}.0123abcd.tmp").write_bytes(b"half")
    list(_run(reader, tmp_path, dataclasses.replace(TRIAL, epochs=1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, PREDICTIONS, TRIAL_RESULT]


def test_the_folder_of_another_trial_is_refused(tmp_path, reader):
    results = _run(reader, tmp_path)
    next(results)
    results.close()
    with pytest.raises(VidflowError, match="holds trial key, wanted other"):
        next(_run(reader, tmp_path, key="other"))


def test_an_unknown_objective_is_named_with_the_metrics_there_are(tmp_path, reader):
    with pytest.raises(ConfigError, match=r"got 'val/miou', wanted one of .*val/top1"):
        next(_run(reader, tmp_path, objective="val/miou"))


@pytest.mark.slow
def test_a_process_killed_at_random_moments_leaves_a_trial_that_ends_the_same(tmp_path, reader, undisturbed):
    script = (
        "import sys, torch; from pathlib import Path; from vidflow.store.features import FeatureReader;"
        "sys.path.insert(0, sys.argv[3]); torch.set_num_threads(1); import test_fit;"
        "list(test_fit._run(FeatureReader(Path(sys.argv[1])), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, str(reader.directory), str(tmp_path), str(Path(__file__).parent)]
    rng = random.Random(0)
    num_kills = 0
    while load_result(tmp_path) is None and num_kills < 30:
        left = set(tmp_path.glob(".*.tmp"))  # by the one killed before
        process = subprocess.Popen(command)
        # Wait until it trains, and then for part of an epoch.
        while process.poll() is None and not set(tmp_path.glob(".*.tmp")) - left:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        num_kills += 1
    assert num_kills > 1
    _assert_same_trial(tmp_path, undisturbed)
