"""Stages as jobs of their own, and the package as the command."""

import subprocess
import sys
from pathlib import Path


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_stage_runs_as_a_module_and_one_whose_turn_has_not_come_is_refused(tiny: Path) -> None:
    few = ["video.synthetic.num_train=2", "video.synthetic.num_val=1"]
    rendered = run("pipelines.synth", tiny, *few)
    assert rendered.returncode == 0, rendered.stderr
    assert len(list((tiny.parent / "root").glob("videos/*/*.mp4"))) == 3
    early = run("pipelines.extract", tiny, "--print", *few)
    assert early.returncode == 0
    assert "not known before the stages above are done" in early.stdout
    refused = run("pipelines.extract", tiny, *few)
    assert refused.returncode == 1
    assert "the shard stage of this configuration is not finished" in refused.stderr


def test_the_package_is_the_command(tiny: Path) -> None:
    shown = run("pipelines", "run", tiny, "--print")
    assert shown.returncode == 0, shown.stderr
    assert "num_train: 40" in shown.stdout
