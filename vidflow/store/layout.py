"""How a file comes to exist: written aside, synced, renamed, and only then named in a manifest.

A manifest is a JSON file with a digest of what it says, its seal. One that is cut or altered counts as not there, and
so does one that lists a file that is gone or cut.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vidflow.errors import DamagedError, VidflowError
from vidflow.files import file_sha256

STAGE_MANIFEST = "manifest.json"
TRIAL_RESULT = "result.json"
_SEAL = "seal"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One committed file of a stage, as the manifest beside it says.

    Attributes:
        file: Name within the stage's folder.
        num_bytes: Its size.
        sha256: Its digest.
        num_clips: Clips in it.
        seconds: Worker seconds it took.
        rejects: Clips left out while it was made, as rows of `Reject`.
        details: What else the stage says of it, such as a member index.
    """

    file: str
    num_bytes: int
    sha256: str
    num_clips: int
    seconds: float
    rejects: list[dict[str, Any]]
    details: dict[str, Any]


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an exception it becomes `path`, durably.

    A reader sees the old file or the whole new one, whenever the writer is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def publish_json(path: Path, value: dict[str, Any]) -> None:
    """Publish a JSON object, indented for people, with its seal."""
    with publish(path) as aside:
        aside.write_text(json.dumps({**value, _SEAL: seal_of(value)}, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote; None where there is no such file.

    A file that is cut or altered is set aside and counts as not there.
    """
    if not path.is_file():
        return None
    value = read_sealed(path)
    if value is None:
        log.warning("%s: cut or altered, so it counts as not there; %s", path, set_aside(path))
    return value


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote; None where there is no such file, or where it is cut or altered.

    Nothing is set aside, so the file may be anyone's.
    """
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else None
        return value if isinstance(value, dict) and value.pop(_SEAL, None) == seal_of(value) else None
    except (ValueError, RecursionError):
        return None


def read_listed(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote, or None unless every file that it lists beside it has the size it states.

    Files are listed under `files` and `entries`, each with `file` and `num_bytes`; no byte of them is read.
    """
    value = read_json(path)
    if value is None:
        return None
    listed = [*value.get("files", ()), *value.get("entries", ())]
    folder = str(path.parent)  # text, because there may be 10,000 files
    return value if all(has_size(f"{folder}/{row['file']}", row["num_bytes"]) for row in listed) else None


def list_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the row by which a manifest lists a file, under another name if one is given."""
    return {"file": name or path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def has_size(path: Path | str, num_bytes: int) -> bool:
    """Whether a file is there and has so many bytes."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == num_bytes


def seal_of(value: dict[str, Any]) -> str:
    """Return the digest of what a JSON object says, whatever the order of its keys."""
    plain = json.loads(json.dumps(value))  # as a reader will find it: keys are text, tuples are lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damage(path: Path, problem: str) -> DamagedError:
    """Set a file aside and return the error that says so."""
    return DamagedError(f"{path}: {problem}; {set_aside(path)}; `vidflow run` makes it again")


def set_aside(path: Path) -> str:
    """Rename a damaged file, so that it counts as not there, and say what became of it."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"delete it, for it cannot be renamed ({error.strerror})"
    return f"it is set aside as {aside.name}"


def publish_entry(directory: Path, entry: FileEntry) -> None:
    """Publish the manifest of one file; from now on the file exists."""
    # Not `asdict`: it copies the whole member index, piece by piece.
    publish_json(directory / f"{entry.file}.json", {field.name: getattr(entry, field.name) for field in fields(entry)})


def committed_entry(directory: Path, file: str) -> FileEntry | None:
    """Return the manifest of a file, or None unless both exist and agree in size."""
    values = read_json(directory / f"{file}.json")
    if values is None:
        return None
    entry = FileEntry(**values)
    return entry if has_size(directory / file, entry.num_bytes) else None


def read_stage(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished stage, or None if it is not finished or a file of it is gone or cut."""
    manifest = read_listed(directory / STAGE_MANIFEST)
    if manifest is None or not all(read_listed(directory / f"{table}.json") for table in manifest.get("tables", ())):
        return None
    return manifest


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed writer left aside; only the holder of the root's lock may call this."""
    for aside in directory.glob(".*.tmp"):
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold `root` for this process; the lock goes with the process, however it ends.

    Raises:
        VidflowError: If another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise VidflowError(
                f"{root}: in use by process {lock.read().strip() or '?'}; wait for it, or set another `root=`"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
