"""A real Ray cluster on this machine: `ray start` for the head and for each node, with token authentication.

The head is at 127.0.0.2 and each node at a loopback address of its own: 127.0.0.1 Ray would replace by the machine's
address in its network.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_SECONDS_TO_START = 180


@dataclass
class Node:
    """One raylet with everything that it has started."""

    process: subprocess.Popen[bytes]

    def everything(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        """End all processes of the node at once, as a machine that loses power does."""
        if self.process.poll() is None:
            for process in self.everything():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(30)

    def freeze(self) -> None:
        """Stop all processes of the node, as a machine that loses its network does."""
        for process in self.everything():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()


@dataclass
class Cluster:
    """A head without CPUs, with the job server, and nodes that come and go."""

    folder: Path
    environment: dict[str, str]
    address: str
    dashboard: str
    head: Node
    nodes: list[Node] = field(default_factory=list)

    def add_node(self, num_cpus: float = 2) -> Node:
        """Start a node; it joins a few seconds later."""
        words = [f"--address={self.address}", f"--node-ip-address=127.0.0.{len(self.nodes) + 3}"]
        words += [f"--num-cpus={num_cpus}", "--num-gpus=0"]
        node = _start(words, self.environment, self.folder / f"node{len(self.nodes)}.log")
        self.nodes.append(node)
        return node

    def count_alive(self) -> int:
        """Number of living nodes with CPUs, as the head sees them."""
        script = "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
        script += "print('alive:', sum(n['Alive'] and 'CPU' in n['Resources'] for n in ray.nodes()))"
        done = subprocess.run(
            [sys.executable, "-c", script], env=self.environment, capture_output=True, text=True, check=True
        )
        return int(re.findall(r"^alive: (\d+)$", done.stdout, re.MULTILINE)[0])  # Ray may print lines of its own

    def wait_for_nodes(self, number: int) -> None:
        deadline = time.monotonic() + _SECONDS_TO_START
        while (found := self.count_alive()) != number:
            assert time.monotonic() < deadline, f"{found} of {number} nodes"
            time.sleep(1)

    def submit(self, *words: str, **variables: str) -> "Job":
        """Run a command on the head through the job server, from a copy of this checkout."""
        command = [_ray(), "job", "submit", "--address", self.dashboard, "--working-dir", str(ROOT)]
        log = (self.folder / f"job{time.monotonic_ns()}.log").open("w+b")
        environment = {**self.environment, **variables}
        process = subprocess.Popen(
            [*command, "--", *words], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
        )
        return Job(process, Path(log.name))


@dataclass
class Job:
    """A submitted command; `ray job submit` shows its lines and ends when it ends."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)


@contextlib.contextmanager
def ray_cluster(num_nodes: int, *, num_cpus: float = 2) -> Iterator[Cluster]:
    """Start a head and nodes with token authentication; end every process at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets want short names
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        # A node is taken for lost after 5 s instead of 30.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "5",
        "OMP_NUM_THREADS": "1",
    }
    port, dashboard = _free_port(), _free_port()
    words = ["--head", "--node-ip-address=127.0.0.2", f"--port={port}", "--num-cpus=0", "--num-gpus=0", f"--temp-dir={folder / 'tmp'}"]
    words += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    environment["RAY_ADDRESS"] = address = f"127.0.0.2:{port}"
    head = _start(words, environment, folder / "head.log")
    cluster = Cluster(folder, environment, address, f"http://127.0.0.1:{dashboard}", head)
    try:
        _wait_for_jobs(cluster)
        for _ in range(num_nodes):
            cluster.add_node(num_cpus)
        cluster.wait_for_nodes(num_nodes)
        yield cluster
    finally:
        for node in [*cluster.nodes, head]:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(words: list[str], environment: dict[str, str], log: Path) -> Node:
    command = [_ray(), "start", "--block", "--disable-usage-stats", *words]
    environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as output:
        return Node(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        )


def _wait_for_jobs(cluster: Cluster) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}", "X-Ray-Authorization": token}
    )
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            assert cluster.head.process.poll() is None, (cluster.folder / "head.log").read_text()
            assert time.monotonic() < deadline, (cluster.folder / "head.log").read_text()
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that a test has started, if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
