"""Publish files: write under a temporary name, sync, rename, and only then list in a manifest.

A manifest is a JSON file with a digest of its own content, the seal. A manifest that is truncated or altered counts as
missing. So does a manifest that lists a file that is missing or has another size.
"""

import contextlib
import errno
import fcntl
import fnmatch
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
LAST = "last.safetensors"
BEST = "best.safetensors"
_SEAL = "seal"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One committed file of a stage, as described by the manifest beside it.

    Attributes:
        file: Name within the stage's folder.
        num_bytes: Its size.
        sha256: Its digest.
        num_clips: Clips in it.
        seconds: Worker seconds it took.
        rejects: Clips left out while it was made, as rows of `Reject`.
        details: Further facts from the stage, such as a member index.
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
    """Yield a temporary path beside `path`. If the block succeeds, sync it and rename it to `path`.

    A reader sees the old file or the complete new one, even if the writer is killed.
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
    """Publish a JSON object with its seal, indented so that people can read it."""
    with publish(path) as aside:
        aside.write_text(json.dumps({**value, _SEAL: seal_of(value)}, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote; None if there is no such file.

    A file that is truncated or altered is set aside and counts as missing.
    """
    if not path.is_file():
        return None
    value = read_sealed(path)
    if value is None:
        log.warning("%s: truncated or altered, so it counts as missing; %s", path, set_aside(path))
    return value


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote; None if there is no such file, or it is truncated or altered.

    The file is not set aside, so it may belong to somebody else.
    """
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else None
        return value if isinstance(value, dict) and value.pop(_SEAL, None) == seal_of(value) else None
    except (ValueError, RecursionError):
        return None


def read_listed(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote; None if a file that it lists is missing or has another size.

    Files are listed under `files` and `entries`, each with `file` and `num_bytes`. Their contents are not read.
    """
    value = read_json(path)
    if value is None:
        return None
    listed = [*value.get("files", ()), *value.get("entries", ())]
    folder = str(path.parent)  # text, because `Path` is slow for 10,000 files
    return value if all(has_size(f"{folder}/{row['file']}", row["num_bytes"]) for row in listed) else None


def list_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the row of a file in a manifest, under another name if one is given."""
    return {"file": name or path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def has_size(path: Path | str, num_bytes: int) -> bool:
    """Return whether a regular file exists and has this size."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == num_bytes


def seal_of(value: dict[str, Any]) -> str:
    """Return the digest of a JSON object, which does not depend on the order of its keys."""
    plain = json.loads(json.dumps(value))  # as a reader gets it: keys are text, tuples are lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damage(path: Path, problem: str) -> DamagedError:
    """Set a damaged file aside and return the error that says so."""
    return DamagedError(f"{path}: {problem}; {set_aside(path)}; `vidflow run` makes it again")


def set_aside(path: Path) -> str:
    """Rename a damaged file to NAME.damaged, so that it counts as missing; return a phrase that says so."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"it cannot be renamed ({error.strerror}): delete it"
    return f"it is set aside as {aside.name}"


def publish_entry(directory: Path, entry: FileEntry) -> None:
    """Publish the manifest of one file; from now on the file counts as committed."""
    # Not `asdict`, which copies the whole member index, entry by entry.
    publish_json(directory / f"{entry.file}.json", {field.name: getattr(entry, field.name) for field in fields(entry)})


def committed_entry(directory: Path, file: str) -> FileEntry | None:
    """Return the manifest of a file; None if one of the two is missing or their sizes differ."""
    values = read_json(directory / f"{file}.json")
    if values is None:
        return None
    entry = FileEntry(**values)
    return entry if has_size(directory / file, entry.num_bytes) else None


def read_stage(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a stage; None if the stage is not finished, or a file is missing or has another size."""
    manifest = read_listed(directory / STAGE_MANIFEST)
    if manifest is None or not all(read_listed(directory / f"{table}.json") for table in manifest.get("tables", ())):
        return None
    return manifest


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of killed writers; only the holder of the root's lock may call this."""
    for aside in directory.glob(".*.tmp"):
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Lock `root` for this process. The lock ends with the process, even if it is killed.

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


def exists(path: Path) -> bool:
    """Return whether there is a file of this name."""
    return path.exists()


def list_files(directory: Path, pattern: str = "*") -> list[Path]:
    """Return the files of a folder whose names match, sorted; with `**/` also those of the folders in it.

    Links count as files and are not followed. A folder that is not there has no files.

    Raises:
        OSError: If a folder cannot be read.
    """
    deep, name = pattern.startswith("**/"), pattern.removeprefix("**/")
    if not directory.is_dir():
        return []
    found: list[Path] = []
    for folder, folders, files in os.walk(directory, onerror=_raise):
        links = [each for each in folders if os.path.islink(os.path.join(folder, each))]
        found += [Path(folder, each) for each in fnmatch.filter([*files, *links], name)]
        if not deep:
            break
    return sorted(found)


def list_folders(directory: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none if there is no such folder."""
    return sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def list_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder by its name; empty if there is no such folder."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def remove(path: Path) -> None:
    """Delete a file or a link; it may be gone already."""
    path.unlink(missing_ok=True)


def fetch(path: Path) -> Path:
    """Return where the bytes of a file can be read on this machine.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


def _raise(error: OSError) -> None:
    raise error
