"""A small experiment and the command that runs it, as a user would."""

import contextlib
import fcntl
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import TINY

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The config of an experiment that takes seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=tmp_path / "root"))
    return path


@pytest.fixture(scope="session")
def vidflow() -> Callable[..., Done]:
    """The command line, run in a process of its own, which ends with the time limit of the test."""

    def run(*arguments: object) -> Done:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=Path.cwd())

    return run


@pytest.fixture(scope="session")
def here() -> Callable[..., Done]:
    """The command line, run in this process: to start another and to import all again takes seconds."""
    from pipelines.cli import main

    def run(*arguments: object) -> Done:
        words, said = list(map(str, arguments)), io.StringIO()
        log = logging.StreamHandler(said)
        logging.getLogger("vidflow").addHandler(log)
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()) as printed,
                contextlib.redirect_stderr(said),
                pytest.raises(SystemExit) as left,
            ):
                main(words)
        finally:
            logging.getLogger("vidflow").removeHandler(log)
        return subprocess.CompletedProcess(words, int(left.value.code or 0), printed.getvalue(), said.getvalue())

    return run


@pytest.fixture(scope="session")
def in_one_ray(here: Callable[..., Done]) -> Iterator[Callable[..., Done]]:
    """The command line in this process, whose commands share one Ray and have one worker per stage."""
    from pipelines.ray_session import ray_session
    from vidflow.config.schema import Config

    one = [f"resources.{stage}.workers=1" for stage in ("shard", "extract", "trials")]
    with ray_session(Config()):
        yield lambda *arguments: here(*arguments, *one)


@dataclass(frozen=True)
class Experiment:
    """A small experiment that has run to its end. All tests share it, so a test that changes anything takes a copy.

    Attributes:
        config: Its settings.
        root: Where it ran.
        said: What the command said.
    """

    config: Path
    root: Path
    said: str


@pytest.fixture(scope="session")
def finished_experiment(tmp_path_factory: pytest.TempPathFactory, vidflow: Callable[..., Done]) -> Experiment:
    """The one such experiment; the first test process that asks for it runs it, and all others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    config, root, said = (folder / name for name in ("tiny.yaml", "root", "said.txt"))
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)  # where it failed in another process
            folder.mkdir()
            config.write_text(TINY.format(root=root))
            done = vidflow("run", config)
            assert done.returncode == 0, done.stderr
            said.write_text(done.stderr)
    return Experiment(config, root, said.read_text())


@pytest.fixture
def copied_config(finished_experiment, tmp_path) -> Path:
    """The config of a copy of the finished experiment, without MLflow; its videos count as scanned where they are."""
    from vidflow.config.load import load_config
    from vidflow.stages import experiment, scan
    from vidflow.store.rows import read_rows

    root, path = tmp_path / "root", tmp_path / "tiny.yaml"
    shutil.copytree(finished_experiment.root, root, ignore=shutil.ignore_patterns("mlartifacts", "mlflow.db*", "tune"))
    path.write_text(finished_experiment.config.read_text().replace(str(finished_experiment.root), str(root)))
    rows = [row for part in root.glob("index/*.parquet") for row in read_rows(part, scan.ScannedVideo)]
    shutil.rmtree(root / "index")
    folder = next(root.glob("videos/*/"))
    moved = [_scanned_at(folder / Path(row.path).name, row) for row in rows]
    experiment.Experiment(load_config([path])).index.add(moved)
    return path


def _scanned_at(path: Path, row: Any) -> Any:
    from vidflow.files import file_state

    num_bytes, modified_ns, changed_ns = file_state(path)
    return replace(row, path=str(path), num_bytes=num_bytes, modified_ns=modified_ns, changed_ns=changed_ns)
