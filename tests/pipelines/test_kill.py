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
    "videos/*/*.mp4",
    "shards/*/*.tar",
    "shards/*/*.parquet",
    "features/*/*.arrow",
    "features/*/*.parquet",
    "trials/*/best.safetensors",
)
PUBLISHED = {"shard": "shards/*/*.tar", "extract": "features/*/*.arrow", "sweep": "trials/*/*.safetensors"}
KILLS = [
    ("shard", "driver"),
    ("shard", "worker"),
    ("shard", "driver"),
    ("extract", "worker"),
    ("extract", "driver"),
    ("extract", "driver"),
    ("sweep", "driver"),
    ("sweep", "worker"),
    ("sweep", "driver"),
    ("sweep", "driver"),
]


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
            tuple(sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "val/top1"))),
        )
        for run in runs
    )


def start(config: Path, root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config), f"root={root}", *BIGGER]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(root.parent / "stderr.txt").open("w"))


def parents() -> dict[int, int]:
    """The parent of each process of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # After the name, which is in parentheses and may hold anything, come the state and the parent.
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def workers(driver: int) -> list[int]:
    """Processes in which the driver's own Ray is at work on something; another Ray of this machine is not ours."""
    found, parent_of = [], parents()
    for number in parent_of:
        try:
            name = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        above = number
        while above not in (0, driver):
            above = parent_of.get(above, 0)
        if above == driver and name.startswith((b"ray::_Actor", b"ray::ImplicitFunc")):
            found.append(number)
    return found


def marks(root: Path, stage: str) -> set[tuple[str, int]]:
    """What a stage has published so far."""
    return {(str(path), path.stat().st_mtime_ns) for path in root.glob(PUBLISHED[stage]) if path.exists()}


def wait_for_progress(driver: subprocess.Popen, root: Path, stage: str, rng: random.Random) -> None:
    """Wait until the stage has published some more, and a moment longer."""
    seen, wanted = marks(root, stage), rng.randint(1, 3)
    while driver.poll() is None and len(marks(root, stage) - seen) < wanted:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.2))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_leave_the_bytes_of_an_undisturbed_run_and_no_second_mlflow_run(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(root=tmp_path / "unused"))
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert start(config, calm).wait() == 0
    rng, driver = random.Random(0), None
    for stage, victim in KILLS:
        driver = driver or start(config, stormy)
        wait_for_progress(driver, stormy, stage, rng)
        assert driver.poll() is None, f"over before {stage}, {victim}: {(tmp_path / 'stderr.txt').read_text()[-2000:]}"
        if victim == "worker" and (found := workers(driver.pid)):
            os.kill(rng.choice(found), signal.SIGKILL)
        else:
            driver.kill()
            driver.wait()
            driver = None
    final = driver or start(config, stormy)
    assert final.wait() == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    if driver is not None:
        assert start(config, stormy).wait() == 0
    assert digests(stormy) == digests(calm)
    assert runs_and_epochs(stormy) == runs_and_epochs(calm)
