"""Ctrl-C and SIGTERM while the real command is at work: it commits nothing, ends with 1, and goes on when repeated."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_experiment import TINY

LONGER = ["trials.trial.epochs=60", "trials.axes={core: [mean, gru]}"]
SAID = "vidflow: interrupted; the same command resumes from here"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, vidflow):
    """The config of an experiment whose features are there."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(root=folder / "root"))
    for stage in ("synth", "shard", "extract"):
        done = vidflow(stage, config)
        assert done.returncode == 0, done.stderr
    return config


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(driver: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 500
    while not happened():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs_done(root: Path) -> int:
    from vidflow.training.snapshot import read_snapshot

    number = 0
    for path in root.glob("trials/*/last.safetensors"):
        with contextlib.suppress(RuntimeError):  # safetensors opens a file twice, and it was replaced in between
            snapshot = read_snapshot(path.parent)
            number += 0 if snapshot is None else len(snapshot.history)
    return number


def send(driver: subprocess.Popen[str], number: int, *, group: bool) -> str:
    os.killpg(driver.pid, number) if group else driver.send_signal(number)
    return driver.communicate(timeout=200)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "seed"),
    [(signal.SIGINT, False, 1), (signal.SIGINT, True, 2), (signal.SIGTERM, True, 3)],
)
def test_an_interrupted_sweep_commits_nothing_and_the_same_command_trains_on(extracted, vidflow, number, group, seed):
    root = extracted.parent / "root"
    command = ["sweep", extracted, *LONGER, f"trials.trial.seed={seed}"]
    driver = start(*command)
    before = epochs_done(root)
    wait_until(driver, lambda: epochs_done(root) >= before + 6)
    said = send(driver, number, group=group)
    assert driver.returncode == 1
    # Ray itself may add `:info_message: Attempting to recover 2 lost objects` when its processes end too.
    assert [line for line in said.splitlines() if not line.startswith(":info_message:")][-1] == SAID
    assert "Traceback" not in said
    sweeps = list(root.glob("sweeps/*/manifest.json"))
    results = list(root.glob("trials/*/result.json"))
    done = vidflow(*command)
    assert done.returncode == 0, done.stderr
    new = set(root.glob("trials/*/result.json")) - set(results)
    assert len(set(root.glob("sweeps/*/manifest.json")) - set(sweeps)) == 1
    assert [(r["status"], len(r["history"])) for r in (json.loads(path.read_text()) for path in new)] == [
        ("completed", 60)
    ] * 2


@pytest.mark.slow
def test_a_search_that_tune_ends_for_a_cause_of_its_own_is_not_a_finished_one(extracted):
    root = extracted.parent / "root"
    driver = start("sweep", extracted, *LONGER, "trials.trial.seed=5", "trials.trial.epochs=400")
    before = epochs_done(root)
    wait_until(driver, lambda: epochs_done(root) >= before + 6)
    said = send(driver, signal.SIGUSR1, group=False)
    assert driver.returncode == 1
    assert "trials ended early" in said
    assert "Traceback" not in said
    assert not any("stopped" in path.read_text() for path in root.glob("trials/*/result.json"))


@pytest.mark.slow
def test_whom_the_scheduler_has_stopped_stays_stopped_after_a_kill(extracted, vidflow):
    root = extracted.parent / "root"
    search = ["trials.scheduler=asha", "trials.asha_grace_epochs=1", "trials.trial.epochs=30", "trials.trial.seed=6"]
    search += ["trials.axes={learning_rate: [0.001, 1.0e-09, 1.0e-10, 1.0e-11, 1.0e-12]}", "resources.trials.workers=1"]
    driver = start("sweep", extracted, *search)
    wait_until(driver, lambda: any(root.glob("sweeps/*/stopped.json")))
    driver.kill()
    driver.communicate()
    (file,) = root.glob("sweeps/*/stopped.json")
    stopped = json.loads(file.read_text())["epochs"]
    done = vidflow("sweep", extracted, *search)
    assert done.returncode == 0, done.stderr
    for key, epoch in stopped.items():
        result = json.loads((root / "trials" / key / "result.json").read_text())
        assert (result["status"], len(result["history"]) in (epoch, epoch + 1)) == ("stopped", True)
