"""Jobs of a cluster: commands that its job server runs on the head, from a copy of this checkout."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """A command that runs on the head; `ray job submit` shows its lines and ends when it ends."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def submitted(cluster: Cluster, *words: str) -> Iterator[Job]:
    """Send this checkout to the job server and run a command in it."""
    command = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--address",
        cluster.address,
        "--working-dir",
        str(ROOT),
        "--",
        *words,
    ]
    log = cluster.folder / f"job{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Job(process, log)
    finally:
        process.kill()
        process.wait()


def wait_for_job_server(cluster: Cluster) -> None:
    """Submit until a job runs: the head's agent, which runs jobs, starts after the head itself."""
    deadline = time.monotonic() + 180
    while True:
        with submitted(cluster, "true") as job:
            if job.process.wait(120) == 0:
                return
        assert time.monotonic() < deadline, job.said + _agents_words(cluster)
        time.sleep(1)


def _agents_words(cluster: Cluster) -> str:
    logs = sorted(cluster.folder.glob("session_*/logs/dashboard_agent*"))
    return "\n".join(f"{log}: {log.read_text()[-2000:]}" for log in logs if not log.is_symlink())
