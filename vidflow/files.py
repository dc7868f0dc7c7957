"""Files of any origin: open them without blocking, detect changes by size and times, and hash them.

A path may be the address of a file inside a tar: see `vidflow.tar_members`. Its state is that of the tar. It may also
stand for an object: see `vidflow.objects`. Its state is then that of the object, and it is copied before it is opened.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vidflow.errors import VideoError
from vidflow.objects import ObjectState, fetch, is_mirror, object_state, object_states
from vidflow.tar_members import find_member, open_member

# Whether this process asks no object store.
_copies_only = False


class FileState(NamedTuple):
    """Size of a file in bytes, and the times at which its bytes and its permissions changed, in nanoseconds."""

    num_bytes: int
    modified_ns: int
    changed_ns: int

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last write. If the stamp differs, the contents count as changed."""
        return self.num_bytes, self.modified_ns


_UNREACHED = FileState(-1, 0, 0)


def file_state(path: str | Path) -> FileState:
    """Return the state of a file; (-1, 0, 0) if it cannot be reached."""
    member = find_member(path)
    file = member.tar if member else path
    if is_mirror(file) and not _copies_only:
        return _of_object(object_state(Path(file)))
    try:
        status = os.stat(file)
    except OSError:
        return _UNREACHED
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def make_local(path: str | Path) -> None:
    """Copy the object that a path stands for to this node; nothing to do for a file, or if there is no such object."""
    member = find_member(path)
    file = Path(member.tar if member else path)
    if is_mirror(file) and not _copies_only:
        with contextlib.suppress(FileNotFoundError):  # whoever opens it says so
            fetch(file)


def use_copies_only() -> None:
    """Read objects in this process by the copies that others have made: for a process that has no time to wait."""
    global _copies_only
    _copies_only = True


def file_stamps(paths: Iterable[str]) -> tuple["array[int]", "array[int]"]:
    """Return the sizes and the times of the last write of many files, as `file_state` has them.

    A tar is looked at once, however many of its members are asked for, and objects are asked for many at a time.
    """
    sizes: array[int] = array("q")
    times: array[int] = array("q")
    tars: dict[Path, FileState] = {}
    remote: dict[int, Path] = {}
    for path in paths:
        # A plain path is looked at here, because a million of calls and records take longer than the file system.
        if "#" not in path and ":/" not in path:
            try:
                status = os.stat(path)
            except OSError:
                state = _UNREACHED
            else:
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
                continue
        elif (member := find_member(path)) is None:
            if is_mirror(path) and not _copies_only:
                remote[len(sizes)] = Path(path)
            state = _UNREACHED if len(sizes) in remote else file_state(path)
        elif member.tar in tars:
            state = tars[member.tar]
        else:
            state = tars[member.tar] = file_state(member.tar)
        sizes.append(state.num_bytes)
        times.append(state.modified_ns)
    found = object_states(remote.values())
    for place, file in remote.items():
        state = _of_object(found[file])
        sizes[place], times[place] = state.stamp
    return sizes, times


def _of_object(state: ObjectState | None) -> FileState:
    return _UNREACHED if state is None else FileState(state.num_bytes, state.modified_seconds * 10**9, 0)


def open_if_regular(path: Path) -> BinaryIO | None:
    """Open a file for reading; return None for a folder, and for a FIFO or device, which may block for ever.

    Raises:
        OSError: If it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # checked first, because opening a device may start it
        return None
    # It may have become a FIFO since then. Without O_NONBLOCK, opening a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a file inside a tar, for reading.

    Raises:
        VideoError: `Missing`, `NotAFile` or `Unreadable`; `Changed` if the tar is not as the address says.
    """
    make_local(path)
    if (member := find_member(path)) is not None:
        tar = open_regular(member.tar)
        if member.is_there(tar):
            return open_member(tar, member)
        tar.close()
        raise VideoError("Changed", f"{path}: {member.tar} has changed and has no such file there; list the tar again")
    try:
        file = open_if_regular(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise VideoError("Missing", f"{path}: no such file; correct the path or leave it out") from error
        raise unreadable(path, error) from error
    if file is None:
        raise VideoError("NotAFile", f"{path}: got a folder, device, FIFO or socket, wanted a file; correct the path")
    return file


def unreadable(path: Path, error: OSError) -> VideoError:
    """Return the error for a file that exists but cannot be read."""
    return VideoError("Unreadable", f"{path}: cannot be read ({error.strerror}); check its permissions and its disk")


def size_of(file: BinaryIO) -> int:
    """Return the number of bytes of an open file."""
    try:
        return os.fstat(file.fileno()).st_size
    except io.UnsupportedOperation:  # part of a tar
        at = file.tell()
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(at)
        return num_bytes


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
