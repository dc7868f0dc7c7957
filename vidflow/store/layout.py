"""How a file comes to exist: written aside, synced, renamed, and only then named in a manifest."""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vidflow.errors import VidflowError

STAGE_MANIFEST = "manifest.json"


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


def publish_json(path: Path, value: Any) -> None:
    """Publish a JSON file, indented for people."""
    with publish(path) as aside:
        aside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def publish_entry(directory: Path, entry: FileEntry) -> None:
    """Publish the manifest of one file; from now on the file exists."""
    # Not `asdict`: it copies the whole member index, piece by piece.
    publish_json(directory / f"{entry.file}.json", {field.name: getattr(entry, field.name) for field in fields(entry)})


def committed_entry(directory: Path, file: str) -> FileEntry | None:
    """Return the manifest of a file, or None unless both exist and agree in size."""
    try:
        entry = FileEntry(**json.loads((directory / f"{file}.json").read_text()))
        size = (directory / file).stat().st_size
    except FileNotFoundError:
        return None
    return entry if entry.num_bytes == size else None


def check_digest(directory: Path, entry: FileEntry) -> None:
    """Read a committed file once and compare it with its manifest.

    Raises:
        VidflowError: If its bytes are not those that were committed.
    """
    path = directory / entry.file
    if file_sha256(path) != entry.sha256:
        raise VidflowError(
            f"{path}: its bytes differ from its manifest (wanted sha256 {entry.sha256}); "
            "delete the file and run the stage that made it again"
        )


def read_stage(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished stage, or None if it is not finished."""
    try:
        manifest: dict[str, Any] = json.loads((directory / STAGE_MANIFEST).read_text())
    except FileNotFoundError:
        return None
    return manifest


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
