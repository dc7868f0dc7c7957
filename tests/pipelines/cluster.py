"""A Ray cluster of several nodes on this machine: real processes at 127.0.0.2, 127.0.0.3, ..., with a token."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HEAD = "127.0.0.2"
# Ray takes a node for dead after seconds instead of about a minute, and exports numbers every second.
QUICK = {
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
    "metrics_report_interval_ms": 1000,
}


@dataclass
class Node:
    """One node.

    Attributes:
        ip: Its address.
        raylet: Its main process, which starts the workers.
    """

    ip: str
    raylet: psutil.Process

    @property
    def is_alive(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.raylet.status() != psutil.STATUS_ZOMBIE
        return False

    def kill(self) -> None:
        """Lose the node's raylet, as `kill -9` does; its workers end with it."""
        self.raylet.kill()

    def freeze(self) -> None:
        """Stop the node's raylet and workers, as a machine that hangs."""
        for process in [self.raylet, *self.raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()


@dataclass
class Cluster:
    """A head and nodes.

    Attributes:
        folder: Folder of the session and its token.
        port: Port of the head.
        nodes: Nodes other than the head, in the order in which they were added.
    """

    folder: Path
    port: int
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)
    _last: int = 2

    @property
    def address(self) -> str:
        """What `RAY_ADDRESS` takes."""
        return f"{HEAD}:{self.port}"

    def living(self) -> list[Node]:
        """Return the nodes whose raylet runs."""
        return [node for node in self.nodes if node.is_alive]

    def add(self, num_cpus: float, *, num_gpus: int = 0, root: Path | None = None) -> Node:
        """Start one more node and wait until it has joined.

        Args:
            num_cpus: CPUs that it declares.
            num_gpus: GPUs that it declares.
            root: Start it in a mount namespace of its own, in which this folder is another, empty one.
        """
        self._last += 1
        ip = f"127.0.0.{self._last}"
        # A folder of its own, as on another machine: nodes that share one remove each other's copies of a job's code.
        options = [f"--address={self.address}", f"--node-ip-address={ip}", f"--temp-dir={self.folder / ip}"]
        hide = (
            [] if root is None else ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {root} && exec "$@"', "-"]
        )
        node = Node(ip, self._start(ip, options, num_cpus, num_gpus, hide))
        self.nodes.append(node)
        return node

    def stop_head(self) -> None:
        """End the head's processes, as `ray stop` does there; the other nodes give up later."""
        raylet = self._find(HEAD)
        raylet.terminate()
        psutil.wait_procs([raylet], timeout=16)
        for process in self._processes():
            if Path(process.info["cmdline"][0]).name == "gcs_server":
                process.terminate()

    def _start(self, ip: str, options: list[str], num_cpus: float, num_gpus: int, hide: list[str]) -> psutil.Process:
        command = [*hide, sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--disable-usage-stats"]
        command += [f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}", "--object-store-memory=100000000"]
        # Not the fixed port of Ray, which another cluster of this machine may have taken.
        command += [f"--dashboard-agent-listen-port={_free_port(ip)}"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return self._find(ip)

    def _find(self, ip: str) -> psutil.Process:
        """Return the raylet of a node."""
        for process in self._processes():
            words = process.info["cmdline"]
            if words[0].endswith("/raylet") and f"--node_ip_address={ip}" in words:
                return process
        raise AssertionError(f"no raylet at {ip}")

    def _processes(self) -> Iterator[psutil.Process]:
        """Yield the processes whose command names this cluster's folder."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(self.folder) in word for word in words) and process.pid != os.getpid():
                yield process

    def close(self) -> None:
        """End all processes of this cluster."""
        ours = []
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                ours += [process, *process.children(recursive=True)]
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
                process.kill()


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_cluster(*, head_cpus: float = 0, dashboard: bool = False) -> Iterator[Cluster]:
    """Start a head, and end it and all nodes at the end.

    Args:
        head_cpus: CPUs that the head declares.
        dashboard: Also start the dashboard, which takes jobs.
    """
    # Short, because the path of a socket has at most 107 characters.
    folder = Path("/tmp") / f"vf-{secrets.token_hex(3)}"
    folder.mkdir()
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder)}
    environment.update({"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"})
    port = 20000 + secrets.randbelow(10000)
    cluster = Cluster(folder, port, environment)
    options = ["--head", f"--node-ip-address={HEAD}", f"--port={port}", f"--temp-dir={folder}"]
    options += [f"--system-config={json.dumps(QUICK)}", f"--include-dashboard={dashboard}"]
    options += [f"--dashboard-port={_free_port('127.0.0.1')}"]
    try:
        cluster._start(HEAD, options, head_cpus, 0, [])
        yield cluster
    finally:
        cluster.close()
        subprocess.run(["rm", "-rf", str(folder)], check=False)
