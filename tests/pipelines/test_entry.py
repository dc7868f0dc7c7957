"""Stages as jobs of their own, and the package as the command."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_a_stage_runs_as_a_module_and_one_whose_turn_has_not_come_is_refused(finished_experiment) -> None:
    done = run("pipelines.synth", finished_experiment.config)
    assert done.returncode == 0, done.stderr
    assert "synth: already done" in done.stderr
    other = [finished_experiment.config, "video.synthetic.num_val=1"]
    early = run("pipelines.extract", "--print", *other)
    assert early.returncode == 0
    assert "not known before the stages above are done" in early.stdout
    refused = run("pipelines.extract", *other)
    assert refused.returncode == 1
    assert "the synth stage of this configuration is not finished" in refused.stderr


def test_the_package_is_the_command(tiny: Path) -> None:
    shown = run("pipelines", "run", tiny, "--print")
    assert shown.returncode == 0, shown.stderr
    assert "num_train: 40" in shown.stdout
