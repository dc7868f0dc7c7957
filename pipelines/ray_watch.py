"""End the command if Ray's own processes die: its calls would wait for ever, or end the process without a word.

Measured with Ray 2.60: without its raylet, every actor stays dead and no call fails for that reason; without the GCS
(Ray's head), the process is ended after 60 s with a text about log files.
"""

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from ray._private import worker as ray_worker
from ray._raylet import GcsClient  # type: ignore[attr-defined] # Ray's types do not know it
from ray.exceptions import RayError

from pipelines.interrupts import RESUMES, received_message

_SECONDS_BETWEEN_LOOKS = 0.5
# On one machine nobody starts it again; 5 s, because a loaded machine may be late to answer.
_SECONDS_WITHOUT_OWN_HEAD = 5.0
# Ray itself ends the process after this time, or what the variable says; our sentence comes before.
_RECONNECT, _RECONNECT_DEFAULT = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
_SHARE_OF_RECONNECT = 0.8


@contextlib.contextmanager
def say_if_ended(problem: str) -> Iterator[subprocess.Popen[bytes]]:
    """Print a sentence if this process is ended within the block by what it cannot catch, from another process.

    As `ray.init` connects, no thread of this process runs, and Ray ends it if a process of Ray is lost at that time.
    Later Ray ends it within a moment if its raylet is stopped while objects are on their way.

    Args:
        problem: What has happened then.
    """
    said = f"vidflow: {problem}; what is committed stays, and {RESUMES}"
    # It waits for a line, which does not come from a process that is gone.
    guard = subprocess.Popen(["/bin/sh", "-c", 'read -r _ || echo "$1" >&2', "sh", said], stdin=subprocess.PIPE)
    try:
        yield guard
    finally:
        guard.communicate(b"\n")


@contextlib.contextmanager
def watch_ray(address: str) -> Iterator[None]:
    """End the process with one sentence and exit code 1 if Ray's processes die within the block.

    It ends at once, as by SIGKILL, because threads that wait in Ray cannot be woken. What is committed survives that.

    Args:
        address: The cluster that is joined, or `local`.
    """
    over = threading.Event()
    with say_if_ended("this process was ended by Ray, which was stopped, or by the system") as guard:
        watch = threading.Thread(target=_watch, args=(address, over, guard), name="watch of ray", daemon=True)
        watch.start()
        try:
            yield
        finally:
            # If Ray is dead, an error of the block may be earlier than the sentence that explains it.
            over.set()
            watch.join()


def _watch(address: str, over: threading.Event, guard: subprocess.Popen[bytes]) -> None:
    """Look again and again, and when the block is over until it is clear whether the head is lost."""
    node: Any = ray_worker._global_node
    if node is None:
        return  # Ray Client (ray://), of which no process is on this machine
    if (raylet := _open_link(node.raylet_socket_name)) is None:
        _end("the raylet of this machine has died", guard)
    head = _Head(address, node.gcs_address, node.cluster_id.hex())
    is_over = False
    while not is_over or head.is_away:
        is_over = over.wait(_SECONDS_BETWEEN_LOOKS)
        if raylet.poll(0):
            _end("the raylet of this machine has died", guard)
        if problem := head.look():
            _end(problem, guard)


def _open_link(path: str) -> "select.poll | None":
    """Return what tells whether a process still listens at a socket; None if none does."""
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(path)
    except OSError:
        return None
    poll = select.poll()
    poll.register(link.detach(), select.POLLHUP)  # it stays open as long as both processes live
    return poll


class _Head:
    """Whether the GCS answers."""

    def __init__(self, address: str, gcs_address: str, cluster: str) -> None:
        host, _, port = gcs_address.rpartition(":")
        self._name = "the head of Ray on this machine" if address == "local" else f"Ray's head at {gcs_address}"
        self._gcs_address, self._place, self._cluster = gcs_address, (host.strip("[]"), int(port)), cluster
        reconnect = float(os.environ.get(_RECONNECT) or _RECONNECT_DEFAULT)
        self._patience = _SECONDS_WITHOUT_OWN_HEAD if address == "local" else _SHARE_OF_RECONNECT * reconnect
        self._answered, self.is_away = time.monotonic(), False

    def look(self) -> str:
        """Return what is wrong; empty if it answers, or may still come back."""
        try:
            socket.create_connection(self._place, timeout=_SECONDS_BETWEEN_LOOKS).close()
        except OSError:
            self.is_away = True
            away = time.monotonic() - self._answered
            return f"{self._name} has died: no answer for {away:.0f} s" if away > self._patience else ""
        if self.is_away and not self._is_known():
            return f"{self._name} was started again, and this command is not known there any more"
        self._answered, self.is_away = time.monotonic(), False
        return ""

    def _is_known(self) -> bool:
        """Whether it is the same cluster as before; also if nobody can say so now."""
        try:
            found: str = GcsClient(address=self._gcs_address).cluster_id.hex()
        except (RuntimeError, RayError):
            return True
        return found == self._cluster


def _end(problem: str, guard: subprocess.Popen[bytes]) -> NoReturn:
    guard.communicate(b"\n")  # else it would say something too
    # A signal to the whole group of processes ends Ray too.
    said = received_message() or f"vidflow: {problem}; what is committed stays, and {RESUMES}"
    # Not `print`: the interrupted code may be using the stream.
    os.write(2, f"{said}\n".encode())
    os._exit(1)


__all__ = ["say_if_ended", "watch_ray"]
