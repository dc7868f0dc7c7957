"""MLflow's own server, started by the command that `vidflow ui` becomes."""

import base64
import contextlib
import http.client
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidflow.tracking import ui_command


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serve(uri: str) -> Iterator[Server]:
    """Serve a store for the time of the block, at a free port."""
    port = free_port()
    process = subprocess.Popen(
        ui_command(uri, port=port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield Server(port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def behind_password(server: Server, user: str, password: str) -> Iterator[int]:
    """Put a proxy before a server that wants basic authentication, as a site's gateway does; yield its port."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Gate(http.server.BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != wanted:
                self.send_error(401)
                return
            inner = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            kept = {k: v for k, v in self.headers.items() if k not in ("Authorization", "Host", "Connection")}
            inner.request(self.command, self.path, body, kept)
            answer = inner.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as gate:
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        yield gate.server_address[1]
        gate.shutdown()


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer from {address}; exit status {process.poll()}")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Start a private PostgreSQL at 127.0.0.1, and yield its address as MLflow takes it."""
    if os.getuid() or shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL that this user may start; Debian's package `postgresql`, as root")
    folder = Path(tempfile.mkdtemp(prefix="vidflow-pg", dir="/tmp"))  # where its user may enter
    shutil.chown(folder, "postgres")
    port, data = free_port(), folder / "data"
    as_postgres = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*as_postgres, "initdb", "-D", data, "-A", "trust", "-U", "postgres"], check=True, capture_output=True
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control = [*as_postgres, "pg_ctl", "-D", str(data), "-w"]
    subprocess.run([*control, "-l", str(folder / "log.txt"), "-o", options, "start"], check=True, capture_output=True)
    try:
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
        shutil.rmtree(folder)


class StoreServer:
    """An `mlflow server` that can be killed and started again, and whose log says what it was asked."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.port, self._said = free_port(), folder / "access.txt"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend]
        self._command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(self._command, stdout=said, stderr=said, start_new_session=True)
        wait_for(f"{self.uri}/health", self._process)

    def kill(self) -> None:
        """End all its processes at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def calls(self) -> Counter[str]:
        """Return method and path -> number of requests so far."""
        lines = re.findall(r'"(GET|POST|PUT|PATCH) (\S+) HTTP', self._said.read_text(errors="replace"))
        return Counter(f"{method} {path.partition('?')[0]}" for method, path in lines if path != "/health")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
