"""Report failures of the system, such as a full disk, in one sentence instead of a traceback."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from pipelines.interrupts import RESUMES
from vidflow.errors import VidflowError

# Exit code of a program that SIGPIPE ends, as shells report it.
_READER_ENDED = 128 + signal.SIGPIPE
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def explain_system_failures(root: Path, *, resumes: bool) -> Iterator[None]:
    """Turn system errors within the block into one sentence; all other errors pass.

    Args:
        root: Folder that the command most likely writes to, for failures that name no file.
        resumes: Whether the command resumes from what is committed if it is repeated.

    Raises:
        VidflowError: If a disk is full, a file was refused, or any other call failed with an error number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise VidflowError(_explain(error, root) + resumes * f"; what is committed stays, and {RESUMES}") from error


@contextlib.contextmanager
def explain_output_failures() -> Iterator[None]:
    """Flush what was printed within the block, and explain a failure to write it.

    Raises:
        VidflowError: If standard output cannot be written, for example because its disk is full.
        SystemExit: If its reader has ended, as `head` does; nothing is wrong then, and nothing is printed.
    """
    with contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout))):
        try:
            yield
        finally:
            sys.stdout.flush()


class _Output:
    """Standard output that explains its own failures, because they name no file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._explain_failures():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._explain_failures():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _explain_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Discard the rest. Otherwise Python tries to write it again at exit, and prints another error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise SystemExit(_READER_ENDED) from error
            raise VidflowError(f"standard output cannot be written ({error.strerror})") from error


def _explain(error: OSError, root: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        folder = _find_full_folder(error, root)
        # The system's words, as libraries add theirs.
        return (
            f"no space left in {folder} ({os.strerror(error.errno)}, {_free(folder)} bytes free); free some space there"
        )
    if error.errno in _REFUSED:
        return f"{error.filename or root}: {reason}; correct the disk or its permissions"
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _free(folder: str) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:  # the folder is gone, as is that of a file which could not be made
        return "?"


def _find_full_folder(error: OSError, root: Path) -> str:
    """Return the folder that is most likely full, because an error on writing names no file."""
    written = error.filename2 or error.filename  # an error of a copy names both files
    if written is not None and not isinstance(written, int):
        return str(Path(os.fsdecode(written)).parent)
    temporary = (Path(os.environ.get("RAY_TMPDIR", "/tmp")), Path(tempfile.gettempdir()))  # noqa: S108 - where Ray writes
    places = [place for place in (root, *temporary) if place.exists()]
    return str(min(places, key=lambda place: shutil.disk_usage(place).free, default=root))
