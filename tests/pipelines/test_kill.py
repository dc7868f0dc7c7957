"""Ten SIGKILLs at random moments, of the driver or of a worker: the same command ends in the same bytes."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from tiny_experiment import TINY

BIGGER = [
    "video.synthetic.num_train=300",
    "video.synthetic.num_val=40",
    "shards.clips_per_shard=8",
    "trials.trial.epochs=8",
    "trials.axes.seed=[0,1]",
]
FILES = (
    "shards/*/*.tar",
    "shards/*/*.parquet",
    "features/*/*.arrow",
    "features/*/*.parquet",
    "trials/*/best.safetensors",
)
KILLS = 10


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in FILES
        for path in sorted(root.glob(pattern))
    }


def runs_and_epochs(root: Path) -> list[tuple]:
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return sorted(
        (
            run.data.tags.get("vidflow.trial_key", "sweep"),
            run.info.status,
            tuple(metric.step for metric in client.get_metric_history(run.info.run_id, "val/top1")),
        )
        for run in runs
    )


def start(config: Path, root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config), f"root={root}", *BIGGER]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(root.parent / "stderr.txt").open("w"))


def workers() -> list[int]:
    """Processes in which Ray is at work on something of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith(b"ray::_Actor") or name.startswith(b"ray::ImplicitFunc"):
                found.append(int(entry.name))
    return found


def stage_of(root: Path) -> str:
    """The stage whose files are being made."""
    for stage, folder in (("sweep", "trials"), ("extract", "features"), ("shard", "shards")):
        if (root / folder).exists():
            return stage
    return "synth"


def wait_for_progress(driver: subprocess.Popen, root: Path, rng: random.Random) -> None:
    """Wait until some more shards, feature files or epochs are there, and a moment longer."""
    seen, wanted = marks(root), rng.randint(1, 4)
    while driver.poll() is None and len(marks(root) - seen) < wanted:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.2))


def marks(root: Path) -> set[tuple[str, int]]:
    paths = [*root.glob("shards/*/*.tar"), *root.glob("features/*/*.arrow"), *root.glob("trials/*/*.safetensors")]
    return {(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_leave_the_bytes_of_an_undisturbed_run_and_no_second_mlflow_run(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(root=tmp_path / "unused"))
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert start(config, calm).wait() == 0
    rng, killed = random.Random(0), []
    while len(killed) < KILLS:
        driver = start(config, stormy)
        wait_for_progress(driver, stormy, rng)
        assert driver.poll() is None, f"finished after {killed}: {(tmp_path / 'stderr.txt').read_text()[-2000:]}"
        if len(killed) % 2 and (victims := workers()):
            killed.append((stage_of(stormy), "worker"))
            os.kill(rng.choice(victims), signal.SIGKILL)
            time.sleep(rng.uniform(0, 1))
        killed.append((stage_of(stormy), "driver"))
        driver.kill()
        driver.wait()
    final = start(config, stormy)
    assert final.wait() == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    print("killed:", killed)
    assert {stage for stage, _ in killed} >= {"shard", "extract", "sweep"}
    assert digests(stormy) == digests(calm)
    assert runs_and_epochs(stormy) == runs_and_epochs(calm)
