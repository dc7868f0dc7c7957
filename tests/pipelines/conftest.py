"""A small experiment and the command that runs it, as a user would."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """\
root: {root}
video:
  synthetic: {{num_train: 40, num_val: 20, size: 32, num_frames: 8, fps: 8}}
  sampling: {{num_frames: 4}}
  size: 32
shards: {{clips_per_shard: 20}}
encoder: {{name: test_vit, weights: 'random:0', img_size: 32, dtype: float32}}
features: {{base: {{depths: [0]}}}}
trials:
  trial: {{num_layers: 1, num_heads: 2, readout_dim: 32, readout_heads: 2, epochs: 2, batch_size: 16}}
  axes: {{core: [mean, gru]}}
"""


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
