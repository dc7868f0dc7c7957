"""A disk that is full, or that may not be written: one sentence in place of a traceback."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vidflow.errors import VidflowError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def explain_disk_failures(root: Path) -> Iterator[None]:
    """Turn the disk's own failures within the block into sentences; every other error passes.

    Raises:
        VidflowError: If a disk is full, or refused a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise VidflowError(
                f"no space left in {_full_folder(error, root)} ({error.strerror or error}); free some there; what is "
                "committed stays, and the same command goes on from here"
            ) from error
        if error.errno in _REFUSED:
            raise VidflowError(
                f"{error.filename or root}: {error.strerror or error}; mend the disk or its permissions; what is "
                "committed stays, and the same command goes on from here"
            ) from error
        raise


def _full_folder(error: OSError, root: Path) -> str:
    """Return the folder that is full, as far as can be told: an error on writing names no file."""
    written = error.filename2 or error.filename  # a copy names both its files
    if written is not None:
        return str(Path(os.fsdecode(written)).parent)
    temporary = (Path(os.environ.get("RAY_TMPDIR", "/tmp")), Path(tempfile.gettempdir()))  # noqa: S108 - where Ray writes
    places = [place for place in (root, *temporary) if place.exists()]
    return str(min(places, key=lambda place: shutil.disk_usage(place).free, default=root))
