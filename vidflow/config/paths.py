"""Check paths before anything is read or written: URL, file, writable folder."""

import os
import re
import tempfile
from pathlib import Path

NO_URLS = "object stores and other URLs are not supported here"


def is_url(path: str) -> bool:
    """Return whether a path is the address of an object store or a server, also if `Path` has merged its slashes."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path) is not None


def folder_problem(folder: Path) -> str | None:
    """Return why a folder cannot be written to; None if it can."""
    try:
        # Permissions are not enough: the superuser has all of them, and some disks refuse him too.
        tempfile.TemporaryDirectory(prefix=".vidflow-", dir=folder).cleanup()
    except OSError as error:
        return f"cannot write to {folder} ({error.strerror})"
    return None


def nearest_existing(path: Path) -> Path | None:
    """Return the path, or the nearest folder above it that exists; None if that cannot be found out."""
    try:
        return next(place for place in (path, *path.parents) if os.path.lexists(place))
    except (OSError, StopIteration):
        return None


def is_file(path: str) -> bool:
    """Return whether a path, with `~` resolved, is a file that can be reached."""
    try:
        return Path(path).expanduser().is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def is_folder(path: str) -> bool:
    """Return whether a path, with `~` resolved, is a folder that can be reached."""
    try:
        return Path(path).expanduser().is_dir()
    except OSError:
        return False


def has_home(path: str) -> bool:
    """Return whether the user named by a leading `~` has a home folder."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True


def cache_folder() -> Path | None:
    """Return the user's folder for what can be made again; None if the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vidflow"
    except RuntimeError:
        return None


def absolute_path(path: str) -> str:
    """Return a path with `~` resolved, seen from the current folder."""
    return str(Path(path).expanduser().absolute())
