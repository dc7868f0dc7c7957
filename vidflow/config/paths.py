"""What a path is before anything is read or written there: a URL, a file, a folder that can be written."""

import os
import re
import tempfile
from pathlib import Path

NO_URLS = "object stores and other URLs are neither read nor written"


def is_url(path: str) -> bool:
    """Whether a path is the address of an object store or a server, also where `Path` has merged its slashes."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path) is not None


def folder_problem(folder: Path) -> str | None:
    """Say why nothing can be written in a folder; None where it can be."""
    try:
        # Permissions tell less: the superuser has them all, and some disks refuse him too.
        tempfile.TemporaryDirectory(prefix=".vidflow-", dir=folder).cleanup()
    except OSError as error:
        return f"cannot write to {folder} ({error.strerror})"
    return None


def nearest_existing(path: Path) -> Path | None:
    """Return the path or the nearest folder above it that is there; None where that cannot be seen."""
    try:
        return next(place for place in (path, *path.parents) if os.path.lexists(place))
    except (OSError, StopIteration):
        return None


def is_file(path: str) -> bool:
    """Whether a path, `~` resolved, is that of a file that can be reached."""
    try:
        return Path(path).expanduser().is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def has_home(path: str) -> bool:
    """Whether the user behind a leading `~` has a home folder."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True
