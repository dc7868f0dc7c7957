"""SIGKILLs at random moments: the same command ends in the same bytes, and in the same runs."""

import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
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


RAY = ("raylet", "gcs_server")
# Agents of a raylet that is gone first try for a minute to tell the head, which is gone too.
SECONDS_TO_NOTICE, SECONDS_TO_GO = 90, 120
NUM_KILLS = int(os.environ.get("VIDFLOW_KILLS", "100"))
KILLS_PER_RUN = 8
SHARE_AT_START = 0.1
# What a run starts from -> folders that are there already. So its kills hit later stages as often as earlier ones.
BEFORE = {
    "synth": (),
    "shard": ("videos",),
    "extract": ("videos", "index", "shards"),
    "sweep": ("videos", "index", "shards", "features"),
}
STORM = [
    "video.synthetic.num_train=160",
    "shards.clips_per_shard=8",
    "trials.trial.epochs=4",
    "trials.axes.seed=[0,1]",
    # Else a third kill of the worker of one unit makes rejects of its clips, and of one trial fails it, as promised.
    *[f"resources.{stage}.attempts=50" for stage in ("shard", "extract", "trials")],
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


def start(config: Path, root: Path, settings: list[str] = BIGGER) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config), f"root={root}", *settings]
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


def processes(driver: int) -> dict[str, list[int]]:
    """Processes of the driver by their kind; another Ray of this machine is not ours."""
    found, parent_of = {"driver": [driver]}, parents()
    for number in parent_of:
        try:
            name = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        above = parent_of[number]
        while above not in (0, driver):
            above = parent_of.get(above, 0)
        kind = Path(name).name
        if above == driver and kind in RAY:
            found.setdefault(kind, []).append(number)
        elif above == driver and name.startswith(("ray::_Actor", "ray::ImplicitFunc")):
            found.setdefault("worker", []).append(number)
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
        if victim == "worker" and (found := processes(driver.pid).get("worker")):
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


def moment(driver: subprocess.Popen, log: Path, rng: random.Random) -> int | None:
    """Wait for a random moment of its work, or now and then of its start; return the exit status if that is earlier."""
    if rng.random() < SHARE_AT_START:
        return end_of(driver, rng.uniform(0, 15))
    while (status := driver.poll()) is None and "ready in" not in log.read_text():
        time.sleep(0.1)
    return end_of(driver, rng.uniform(0, 8)) if status is None else status


def end_of(driver: subprocess.Popen, seconds: float) -> int | None:
    """The driver's exit status; None if it goes on."""
    try:
        return driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def stage_of(log: Path) -> str:
    """The stage that the driver named last."""
    words = [line.split()[1].strip(":") for line in log.read_text().splitlines() if len(line.split()) > 2]
    return next((word for word in reversed(words) if word in ("synth", "scan", "shard", "extract", "sweep")), "start")


def family(driver: int) -> set[tuple[int, str]]:
    """The driver's processes, each with the time of its start, because numbers are used again."""
    parent_of, found = parents(), {driver}
    while more := {number for number, parent in parent_of.items() if parent in found} - found:
        found |= more
    return {(number, started) for number in found if (started := start_of(number))}


def start_of(number: int) -> str:
    """When a process has started; empty if it is gone, or only waits to be collected."""
    try:
        state, *others = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state == "Z" else others[18]


def left_of(members: set[tuple[int, str]]) -> list[str]:
    """Wait until processes are gone; return what is left after two minutes."""
    left = set()
    for _ in range(SECONDS_TO_GO):
        if not (left := {member for member in members if start_of(member[0]) == member[1]}):
            break
        time.sleep(1)
    return [Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200] for number, _ in left]


def kill_until_it_ends(
    driver: subprocess.Popen, log: Path, rng: random.Random, kills: Counter, most: int, members: set
) -> int:
    """Kill processes of a run at random moments until it has ended or there were enough; return its exit status."""
    while kills.total() < most and (status := moment(driver, log, rng)) is None:
        found, stage = processes(driver.pid), stage_of(log)
        members |= family(driver.pid)
        kind = rng.choice(sorted(found))
        try:
            os.kill(rng.choice(found[kind]), signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills[stage, kind] += 1
        started = time.monotonic()
        if kind != "worker":
            status = end_of(driver, SECONDS_TO_NOTICE)
            assert status is not None, f"{stage}: {kind} is gone: {log.read_text()[-2000:]}"
            last = log.read_text().splitlines()[-1:]
            assert kind == "driver" or status == 0 or "resumes from here" in str(last), log.read_text()[-3000:]
        print(f"{kills.total()} {stage} {kind} -> {status} {time.monotonic() - started:.1f} s", flush=True)
        if status is not None:
            break
    status = driver.wait()
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]
    return status


@pytest.mark.slow
@pytest.mark.timeout(7200)  # most kills cost the start of a Ray
def test_a_hundred_kills_of_any_process_leave_the_same_bytes_and_the_same_runs(tmp_path):
    config, log = tmp_path / "tiny.yaml", tmp_path / "stderr.txt"
    config.write_text(TINY.format(root=tmp_path / "unused"))
    assert start(config, tmp_path / "calm", STORM).wait() == 0
    rng, kills, first = random.Random(1), Counter(), itertools.cycle(BEFORE)
    while kills.total() < NUM_KILLS:
        root, members = tmp_path / f"storm-{kills.total()}", set()
        for folder in BEFORE[next(first)]:
            shutil.copytree(tmp_path / "calm" / folder, root / folder)
        most = min(kills.total() + KILLS_PER_RUN, NUM_KILLS)
        while (status := kill_until_it_ends(start(config, root, STORM), log, rng, kills, most, members)) != 0:
            assert status == -signal.SIGKILL or "resumes from here" in log.read_text(), log.read_text()[-3000:]
        assert digests(root) == digests(tmp_path / "calm")
        assert runs_and_epochs(root) == runs_and_epochs(tmp_path / "calm")
        assert left_of(members) == []
        print(f"{root.name}: equal after {kills.total()} kills {dict(kills)}", flush=True)
