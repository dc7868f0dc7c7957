"""A small experiment and the command that runs it, as a user would."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_experiment import TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The config of an experiment that takes seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=tmp_path / "root"))
    return path


@pytest.fixture(scope="session")
def vidflow() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, run in a process of its own."""

    def run(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment, cwd=Path.cwd()
        )

    return run
