"""Local copies of objects: made when they are needed, bounded in size, and least recently used ones removed first.

A copy is current while its size and time of writing equal those of its object. A copy that is used now is never
removed, nor is a file without an object, such as one that is being written.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vidflow.errors import VidflowError
from vidflow.objects.mirror import object_url, split_mirror
from vidflow.objects.remote import ObjectState, download, object_state, write_object

CACHE_LIMIT = "VIDFLOW_CACHE_GIB"
"""Variable of the environment with the bound of a node's cache in GiB."""
_DEFAULT_GIB = 50.0
# A copy that was used within this time is kept, because its user may not have opened it yet.
_KEPT_SECONDS = 120.0
_LEFTOVER_SECONDS = 86400.0
# Objects written within this time are copied again next time, as times of writing have whole seconds.
_SETTLED_SECONDS = 2
# Share of the bound after which a process looks again at what is in the cache.
_LOOK_SHARE = 0.05
_unseen: dict[Path, int] = {}
log = logging.getLogger(__name__)


class _Copy(NamedTuple):
    used: float
    num_bytes: int
    path: Path


def fetch(path: Path) -> Path:
    """Return a path after making its local copy current.

    Raises:
        FileNotFoundError: If there is no such object.
        VidflowError: If the store fails, or the cache cannot be written.
    """
    state = object_state(path)
    if state is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", object_url(path))
    with _used(path) as marker:
        if _is_copy(path, state):
            return path
        # One process of a node copies, the others wait for it.
        fcntl.flock(marker, fcntl.LOCK_EX)
        if not _is_copy(path, state):
            _make_room(path, state.num_bytes, needed=state.num_bytes)
            _copy(path, state)
    return path


def store(local: Path, path: Path) -> None:
    """Write a local file as the object of a mirror; the file becomes the mirror."""
    _make_room(path, local.stat().st_size, needed=0)
    state = write_object(path, local)
    os.utime(local, (state.modified_seconds, state.modified_seconds))
    local.replace(path)


def make_folder(folder: Path) -> None:
    """Make a folder of the cache.

    Raises:
        VidflowError: If this node's cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cache = split_mirror(folder / "_")[0]
        raise VidflowError(
            f"{os.uname().nodename}: the cache {cache} cannot be written ({error.strerror}); set resources.cache to a "
            "folder that every node can write"
        ) from error


def _is_copy(path: Path, state: ObjectState) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, int(status.st_mtime)) == state


def _copy(path: Path, state: ObjectState) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    make_folder(path.parent)
    try:
        download(path, state, aside)
        # A copy of what was written just now may be out of date without showing it.
        is_settled = time.time() - state.modified_seconds > _SETTLED_SECONDS
        os.utime(aside, (state.modified_seconds if is_settled else 0,) * 2)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _used(path: Path) -> Iterator[int]:
    """Note that a copy is used; yield the open note."""
    # Not in the file's own times: whoever checks digests takes a new time for a new content.
    note = _note_of(path)
    make_folder(note.parent)
    descriptor = os.open(note, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        os.utime(note)
        yield descriptor
    finally:
        os.close(descriptor)


def _note_of(path: Path) -> Path:
    cache, scheme, key = split_mirror(path)
    return cache / f"{scheme}:" / ".used" / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _make_room(path: Path, num_bytes: int, *, needed: int) -> None:
    """Remove copies until all files fit under the bound; look only now and then, as looking takes time.

    Args:
        path: A mirror.
        num_bytes: Size of the file that is new.
        needed: How much of it is not on the disk yet.
    """
    cache = split_mirror(path)[0]
    limit = int(float(os.environ.get(CACHE_LIMIT) or _DEFAULT_GIB) * (1 << 30))
    first = cache not in _unseen
    _unseen[cache] = _unseen.get(cache, 0) + num_bytes
    if first or _unseen[cache] > _LOOK_SHARE * limit:
        _unseen[cache] = 0
        _evict(cache, limit - needed)


def _evict(cache: Path, limit: int) -> None:
    """Remove the least recently used copies until the rest has at most this many bytes."""
    copies = sorted(_list_copies(cache))
    excess = sum(copy.num_bytes for copy in copies) - limit
    for copy in copies:
        if excess <= 0 or time.time() - copy.used < _KEPT_SECONDS:
            return
        # Looked at again, as another process may have begun to use it since all were listed.
        if _is_removable(copy) and _last_used(copy.path) <= copy.used:
            copy.path.unlink(missing_ok=True)
            _note_of(copy.path).unlink(missing_ok=True)
            excess -= copy.num_bytes


def _is_removable(copy: _Copy) -> bool:
    """Whether a file has an object of its size, or was left by a process that was killed."""
    if copy.path.name.startswith(".") and copy.path.name.endswith(".tmp"):
        return time.time() - copy.used > _LEFTOVER_SECONDS
    state = object_state(copy.path)
    return state is not None and state.num_bytes == copy.num_bytes


def _list_copies(cache: Path) -> Iterator[_Copy]:
    for scheme in ("s3:", "gs:"):
        for folder, folders, names in os.walk(cache / scheme):
            if ".used" in folders:
                folders.remove(".used")
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # removed by another process
                    yield _Copy(_last_used(path), path.stat().st_size, path)


def _last_used(path: Path) -> float:
    """Return when a copy was used or made."""
    used = path.stat().st_ctime
    with contextlib.suppress(OSError):  # never used since it was made
        used = max(used, _note_of(path).stat().st_mtime)
    return used
