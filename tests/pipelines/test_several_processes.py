"""Trials that several processes train: as one would, and to the same bytes if one is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny_experiment import TINY

from vidflow.training.snapshot import BEST, load_result, read_tensors

TOGETHER = "resources.trials.workers_per_trial=2"
ADAPTED = """
adaptations: {late: {first_block: 3, dropout: 0, rank_ratio: 0.1}}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, vidflow) -> Path:
    """The folder of an experiment whose features are there."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tiny.yaml").write_text(TINY.format(root=folder / "root") + ADAPTED)
    settings = ["trials.axes.core=[gru]"]
    for stage in ("synth", "shard", "extract"):
        done = vidflow(stage, folder / "tiny.yaml", *settings)
        assert done.returncode == 0, done.stderr
    return folder


def _trial(root: Path) -> Path:
    (path,) = root.glob("trials/*")
    return path


def _start(prepared: Path, root: Path, *settings: str) -> subprocess.Popen:
    shutil.copytree(prepared / "root", root)
    command = [sys.executable, "-m", "pipelines.cli", "run", prepared / "tiny.yaml", f"root={root}", TOGETHER]
    return subprocess.Popen([*command, "trials.axes.core=[gru]", *settings], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("feed", [[], ["trials.trial.feed=shards", "trials.trial.adaptation=late"]])
def test_two_processes_per_trial_train_like_one(prepared, vidflow, tmp_path, feed):
    process = _start(prepared, tmp_path / "two", *feed)
    assert process.wait() == 0, process.stderr.read()
    shutil.copytree(prepared / "root", tmp_path / "one")
    done = vidflow("run", prepared / "tiny.yaml", f"root={tmp_path / 'one'}", "trials.axes.core=[gru]", *feed)
    assert done.returncode == 0, done.stderr
    two, one = _trial(tmp_path / "two"), _trial(tmp_path / "one")
    assert two.name == one.name, "the number of processes is in no fingerprint"
    torch.testing.assert_close(read_tensors(two / BEST)[0], read_tensors(one / BEST)[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(load_result(two).history, load_result(one).history, strict=True):
        for name in theirs.metrics:
            if name.startswith("val/"):
                assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-5, abs=1e-5), name


def _processes_of_trials(command: int) -> list[int]:
    """Return the processes that train, without those that start them."""
    below = psutil.Process(command).children(recursive=True)
    return sorted(each.pid for each in below if "ray::_Process" in " ".join(each.cmdline()))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_goes_on_from_its_snapshot_if_one_of_its_processes_is_killed(prepared, tmp_path):
    longer = "trials.trial.epochs=60"
    undisturbed = _start(prepared, tmp_path / "undisturbed", longer)
    assert undisturbed.wait() == 0, undisturbed.stderr.read()
    disturbed = _start(prepared, tmp_path / "disturbed", longer)
    while not (killed := _processes_of_trials(disturbed.pid)) or not list(
        (tmp_path / "disturbed").glob(f"trials/*/{BEST}")
    ):
        assert disturbed.poll() is None, "the trial ended before the kill"
        time.sleep(0.05)
    os.kill(killed[-1], signal.SIGKILL)
    said = disturbed.communicate()[1]
    assert disturbed.returncode == 0, said
    assert "ChildProcessError: process" in said
    assert "of 2 died (killed, or out of memory)" in said
    assert "Traceback" not in said
    ours, theirs = (_trial(tmp_path / name) / BEST for name in ("disturbed", "undisturbed"))
    assert ours.read_bytes() == theirs.read_bytes()
