"""Compare a file with its digest before its first use on a node, and not again until the file changes.

A note in the user's cache folder records each comparison: the file's size, its times of change, its inode and its
digest. If the folder cannot be written, files are compared again each time.
"""

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path

from vidflow.config.paths import cache_folder
from vidflow.errors import DamagedError, VidflowError
from vidflow.files import file_sha256
from vidflow.objects import fetch, is_mirror
from vidflow.store.layout import damage

# Two changes within this time can leave the same time of change, so a check so soon after a change is not recorded.
# Two seconds is the coarsest resolution of file times in use.
GRACE_SECONDS = 2.0


def settled_state(path: Path) -> tuple[int, ...] | None:
    """Return numbers that differ after any change of a file; None if there is no file or it changed just now."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _state(status) if _is_settled(status) else None


def check_once(path: Path, sha256: str) -> None:
    """Compare a file with its digest, unless that was done on this node and the file has not changed since.

    Args:
        path: The file; set aside if its bytes do not have the digest.
        sha256: Digest that was recorded when it was written.

    Raises:
        DamagedError: If it is missing or its bytes do not have the digest.
        VidflowError: If it cannot be read.
    """
    if is_mirror(path):
        _check_copy(path, sha256)
    try:
        status = os.stat(path)
        note = _note_of(path)
        stamp = " ".join(map(str, (*_state(status), sha256)))
        if note is not None and _read(note) == stamp:
            return
        is_settled = _is_settled(status)
        got = file_sha256(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: gone; `vidflow run` makes it again") from error
    except OSError as error:
        raise VidflowError(f"{path}: cannot be read ({error.strerror})") from error
    if got != sha256:
        raise damage(path, f"its bytes are not those that were written (sha256 {got}, wanted {sha256})")
    if note is not None and is_settled:
        _write(note, stamp)


def _check_copy(path: Path, sha256: str) -> None:
    """Copy an object to this node; if the copy is damaged, copy it once more, as the object may be whole.

    Raises:
        DamagedError: If there is no such object.
    """
    try:
        fetch(path)
        note, status = _note_of(path), os.stat(path)
        if note is not None and _read(note) == " ".join(map(str, (*_state(status), sha256))):
            return
        if file_sha256(path) != sha256:
            path.unlink()
            fetch(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: gone; `vidflow run` makes it again") from error


def _state(status: os.stat_result) -> tuple[int, ...]:
    # A change of the bytes always changes ctime. No program can set ctime, unlike mtime.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _is_settled(status: os.stat_result) -> bool:
    return time.time() - status.st_ctime > GRACE_SECONDS


def _note_of(path: Path) -> Path | None:
    """Return the path of a file's note; None if the user has no home."""
    # With the node's name, because several nodes can share a home.
    name = hashlib.sha256(f"{platform.node()} {os.path.realpath(path)}".encode(errors="surrogateescape")).hexdigest()
    cache = cache_folder()
    return None if cache is None else cache / "checked" / name


def _read(note: Path) -> str:
    try:
        return note.read_text(errors="replace")
    except OSError:
        return ""


def _write(note: Path, stamp: str) -> None:
    # Written in place, because a note that is cut differs from every stamp.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(stamp)
