"""Hold a prefix of an object store for one command: a lease, as object stores have no locks.

A command that wants to hold a prefix writes a lease of its own under a random name, and then lists all leases. Stores
list what was written before, so of two commands that write at the same time at least one sees the other. Whoever sees
another living lease deletes its own, and tries again after a random pause. So two commands never hold a prefix.

A holder writes its lease again every `RENEW_SECONDS`; it is dead if that did not happen for `DEAD_SECONDS`. Both times
are the store's: the age of a lease is counted up to one's own fresh lease in the same listing. So wrong clocks of nodes
do no harm. A holder whose lease died, because it was frozen or its network was away, is interrupted.

If all this fails, two commands at work are still harmless: what they write is addressed by everything that it depends
on, so both write the same bytes under the same names, and a manifest is written after what it lists.
"""

import contextlib
import json
import logging
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vidflow.errors import VidflowError
from vidflow.objects.mirror import object_url
from vidflow.objects.remote import ObjectState, delete_object, list_objects, read_object, write_object

RENEW_SECONDS = 15.0
DEAD_SECONDS = 90.0
# So a holder knows that it has lost its lease before others take it.
_RENEWAL_PATIENCE_SECONDS = 25.0
_DELETION_PATIENCE_SECONDS = 3.0
LEASES = ".lease"
log = logging.getLogger(__name__)


@contextlib.contextmanager
def lease(root: Path, holder: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold a prefix within the block.

    Args:
        root: Mirror of the prefix.
        holder: Who holds it, for the messages of others.
        wait_seconds: How long to wait for another holder.

    Raises:
        VidflowError: If another command holds it, or if the lease was lost within the block.
    """
    own = root / LEASES / f"{secrets.token_hex(8)}.json"
    content = json.dumps({"holder": holder, "process": _process()}).encode()
    _acquire(root, own, content, wait_seconds)
    renewal = _Renewal(own, content)
    renewal.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if renewal.lost is not None:
            raise VidflowError(f"{object_url(root)}: {renewal.lost}; the same command resumes from here") from error
        raise
    finally:
        renewal.stop()
        if renewal.lost is None:
            _delete(own)


def _acquire(root: Path, own: Path, content: bytes, wait_seconds: float) -> None:
    deadline, waits = time.monotonic() + wait_seconds, False
    while True:
        try:
            write_object(own, content)
            found = {path: state for path, state in list_objects(own.parent).items() if state is not None}
            others = _living(own, found)
        except BaseException:
            _delete(own)
            raise
        if not others:
            return
        delete_object(own)
        holder = json.loads(read_object(others[0]) or b"{}").get("holder", "another command")
        if time.monotonic() > deadline:
            raise VidflowError(
                f"{object_url(root)}: in use by {holder}; wait for it, or set another `root=`. If it was killed, its "
                f"hold ends {DEAD_SECONDS:.0f} s after that"
            )
        if not waits:
            log.info("%s: in use by %s; waiting for up to %.0f s", object_url(root), holder, wait_seconds)
            waits = True
        time.sleep(random.uniform(0.3, 1.5))


def _delete(own: Path) -> None:
    """Delete one's own lease, which otherwise dies by itself."""
    with contextlib.suppress(VidflowError):
        delete_object(own, patience_seconds=_DELETION_PATIENCE_SECONDS)


def _living(own: Path, found: dict[Path, ObjectState]) -> list[Path]:
    """Return the leases of others that live; delete those that are dead."""
    now, others = max(state.modified_seconds for state in found.values()), []
    for path, state in found.items():
        if path == own:
            continue
        if now - state.modified_seconds > DEAD_SECONDS or _has_ended(read_object(path)):
            delete_object(path)
        else:
            others.append(path)
    return others


def _process() -> list[str]:
    """Return what tells this process from all others: machine, start of the machine, name space and number."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    here = [boot.read_text().strip(), os.readlink(space)] if boot.exists() and space.is_symlink() else []
    return [os.uname().nodename, *here, str(os.getpid())]


def _has_ended(content: bytes | None) -> bool:
    """Return whether a lease was deleted, or is that of a process of this machine that has ended."""
    if content is None:
        return True
    try:
        *place, pid = json.loads(content)["process"]
    except (ValueError, KeyError, TypeError):
        return False
    return len(place) > 1 and place == _process()[:-1] and not Path("/proc", pid).exists()


class _Renewal(threading.Thread):
    """Writes a lease again and again; interrupts the main thread if the lease is lost.

    Attributes:
        lost: Why it is lost; None while it is held.
    """

    def __init__(self, own: Path, content: bytes) -> None:
        super().__init__(daemon=True, name="lease")
        self.lost: str | None = None
        self._own, self._content = own, content
        self._ended = threading.Event()

    def run(self) -> None:
        """Renew until `stop`."""
        renewed = time.monotonic()
        while not self._ended.wait(RENEW_SECONDS):
            try:
                # Another command deletes it if it looked dead, such as while this machine slept.
                if read_object(self._own, patience_seconds=_RENEWAL_PATIENCE_SECONDS) is None:
                    self.lost = "another command took it over while this one was not running"
                else:
                    write_object(self._own, self._content, patience_seconds=_RENEWAL_PATIENCE_SECONDS)
                    renewed = time.monotonic()
            except VidflowError as error:
                self.lost = f"the hold on it could not be renewed for {time.monotonic() - renewed:.0f} s: {error}"
            if self.lost is not None and not self._ended.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def stop(self) -> None:
        """End the thread; what it is sending is sent first, so that it does not come after the deletion."""
        self._ended.set()
        self.join()
