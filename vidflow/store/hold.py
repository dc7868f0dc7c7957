"""Hold an experiment's root for one command, so that a second command does not work on the same files.

On a disk the hold is a lock that the system frees when the process ends, also on NFS; in an object store it is a lease.
"""

import contextlib
import fcntl
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vidflow import objects
from vidflow.config.tracking_uri import without_credentials
from vidflow.errors import VidflowError
from vidflow.objects.lease import lease

WAIT_SECONDS = 10.0
"""How long a command waits for another one."""
_LOOK_SECONDS = 0.25
_MAX_COMMAND = 200
_held: set[Path] = set()
log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(root: Path, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[bool]:
    """Hold `root` for this process; yield whether it was not held before.

    Within the block the process may hold it again. The hold ends with the process, even if it is killed.

    Raises:
        VidflowError: If another process holds it.
    """
    if root in _held:
        yield False
        return
    holding = (
        lease(root, _describe(), wait_seconds=wait_seconds) if objects.is_mirror(root) else _lock(root, wait_seconds)
    )
    with holding:
        _held.add(root)
        try:
            yield True
        finally:
            _held.remove(root)


@contextlib.contextmanager
def _lock(root: Path, wait_seconds: float) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as lock:
        _wait(lock, root, wait_seconds)
        lock.truncate(0)
        lock.write(_describe())
        lock.flush()
        yield


def _wait(lock: TextIO, root: Path, wait_seconds: float) -> None:
    deadline, waits = time.monotonic() + wait_seconds, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            if time.monotonic() > deadline:
                raise VidflowError(f"{root}: in use by {holder}; wait for it, or set another `root=`") from error
        else:
            return
        if not waits:
            log.info("%s: in use by %s; waiting for up to %.0f s", root, holder, wait_seconds)
            waits = True
        time.sleep(_LOOK_SECONDS)


def _describe() -> str:
    """Return which process this is, and its command without passwords."""
    program, words = Path(sys.argv[0]), sys.argv[1:]
    name = "vidflow" if program.parent.name == "pipelines" else program.name
    command = without_credentials(shlex.join([name, *words]))[:_MAX_COMMAND]
    return f"process {os.getpid()} on {os.uname().nodename} (`{command}`)"


__all__ = ["WAIT_SECONDS", "exclusive"]
