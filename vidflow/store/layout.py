"""Publish files: write under a temporary name, sync, rename, and only then list in a manifest.

A manifest is a JSON file with a digest of its own content, the seal. A manifest that is truncated or altered counts as
missing. So does a manifest that lists a file that is missing or has another size.

A path may be the mirror of an object (see `vidflow.objects`). Then the file is written as an object before it gets its
name, which is the commit, and readers ask the store, never the mirror alone. A file that is to be opened by its path is
fetched first. All files under an experiment's root are read, written, listed and removed by the functions here.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from typing import Any

from vidflow import objects
from vidflow.errors import DamagedError
from vidflow.files import FileState, file_sha256
from vidflow.store.hold import exclusive as exclusive

STAGE_MANIFEST = "manifest.json"
TRIAL_RESULT = "result.json"
LAST = "last.safetensors"
BEST = "best.safetensors"
PREDICTIONS = "predictions.safetensors"
_SEAL = "seal"
# Requests to an object store at the same time.
_NUM_REQUESTS = 16
# As each holds the index of all members of a shard.
_ENTRIES_AT_A_TIME = 64
# Other commands may be copying objects into the same mirror now.
_LEFTOVER_SECONDS = 86400.0
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
        details: Further facts from the stage; of a shard, `members` is the index of its members.
    """

    file: str
    num_bytes: int
    sha256: str
    num_clips: int
    seconds: float
    rejects: list[dict[str, Any]]
    details: dict[str, Any]

    def without_members(self) -> "FileEntry":
        """Return the entry as the driver keeps it, which holds those of all files; readers want the members, not it."""
        return replace(self, details={name: value for name, value in self.details.items() if name != "members"})


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block succeeds, sync it and rename it to `path`.

    A reader sees the old file or the complete new one, even if the writer is killed.
    """
    is_mirror = objects.is_mirror(path)
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        if is_mirror:
            objects.store(aside, path)
        else:
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
    data = read_bytes(path)
    value = None if data is None else _parse_sealed(data)
    if data is not None and value is None:
        log.warning("%s: truncated or altered, so it counts as missing; %s", path, set_aside(path))
    return value


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `publish_json` wrote; None if there is no such file, or it is truncated or altered.

    The file is not set aside, so it may belong to somebody else.
    """
    data = read_bytes(path)
    return None if data is None else _parse_sealed(data)


def _parse_sealed(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
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
    return value if not listed or have_sizes(path.parent, listed) else None


def have_sizes(folder: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Return whether all files that a manifest lists in its folder exist, with the sizes that it says."""
    if not objects.is_mirror(folder):
        name = str(folder)  # text, because `Path` is slow for 10,000 files
        return all(has_size(f"{name}/{row['file']}", row["num_bytes"]) for row in rows)
    wanted = {folder / row["file"]: row["num_bytes"] for row in rows}
    states = objects.object_states(wanted)
    return all(state is not None and state.num_bytes == wanted[path] for path, state in states.items())


def list_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder by its name; empty if there is no such folder."""
    if objects.is_mirror(folder):
        found = objects.list_objects(folder)
        return {path.name: state.num_bytes for path, state in found.items() if state is not None}
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def list_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the row of a file in a manifest, under another name if it has not got its name yet."""
    if name is None:
        path = fetch(path)
    return {"file": name or path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def has_size(path: Path | str, num_bytes: int) -> bool:
    """Return whether a regular file exists and has this size."""
    if objects.is_mirror(path):
        state = objects.object_state(Path(path))
        return state is not None and state.num_bytes == num_bytes
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
        if objects.is_mirror(path):
            objects.move_object(path, aside)
            path.unlink(missing_ok=True)
        else:
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
    entry = _read_entry(directory, file)
    return entry if entry is not None and has_size(directory / file, entry.num_bytes) else None


def committed_entries(directory: Path, files: Sequence[str]) -> Iterator[FileEntry | None]:
    """Yield the manifest of each file as `committed_entry` returns it; few are in memory at the same time."""
    if not objects.is_mirror(directory):
        yield from (committed_entry(directory, file) for file in files)
        return
    sizes = list_sizes(directory)
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        for start in range(0, len(files), _ENTRIES_AT_A_TIME):
            some = files[start : start + _ENTRIES_AT_A_TIME]
            for entry in pool.map(lambda file: _read_entry(directory, file) if file in sizes else None, some):
                yield entry if entry is not None and sizes[entry.file] == entry.num_bytes else None


def _read_entry(directory: Path, file: str) -> FileEntry | None:
    values = read_json(directory / f"{file}.json")
    return None if values is None else FileEntry(**values)


def read_stage(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a stage; None if the stage is not finished, or a file is missing or has another size."""
    manifest = read_listed(directory / STAGE_MANIFEST)
    if manifest is None or not all(read_listed(directory / f"{table}.json") for table in manifest.get("tables", ())):
        return None
    return manifest


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of killed writers; only the holder of the root's lock may call this."""
    # An object store shows no half-written object. In a mirror other commands may be making copies.
    oldest = time.time() - _LEFTOVER_SECONDS if objects.is_mirror(directory) else float("inf")
    for aside in directory.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # it has got its name just now
            if aside.stat().st_mtime < oldest:
                aside.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder for files; an object store needs none, but this node's mirror does."""
    if objects.is_mirror(folder):
        objects.make_folder(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)


def read_bytes(path: Path) -> bytes | None:
    """Return the bytes of a small file; None if there is no such file."""
    if objects.is_mirror(path):
        return objects.read_object(path)
    return path.read_bytes() if path.is_file() else None


def exists(path: Path) -> bool:
    """Return whether there is a file of this name."""
    return objects.object_state(path) is not None if objects.is_mirror(path) else path.exists()


def has_files(folder: Path) -> bool:
    """Return whether a folder is there; in an object store, whether anything is in it."""
    return bool(objects.list_objects(folder)) if objects.is_mirror(folder) else folder.is_dir()


def list_files(directory: Path, pattern: str = "*") -> list[Path]:
    """Return the files of a folder whose names match, sorted; with `**/` also those of the folders in it.

    Links count as files and are not followed. A folder that is not there has no files.

    Raises:
        OSError: If a folder cannot be read.
        ValueError: If the pattern names folders in another way.
    """
    deep, name = pattern.startswith("**/"), pattern.removeprefix("**/")
    if "/" in name:
        raise ValueError(f"got pattern {pattern!r}, wanted NAME or **/NAME")
    if objects.is_mirror(directory):
        listed = objects.list_objects(directory, recursive=deep)
        return sorted(path for path, state in listed.items() if state is not None and fnmatch(path.name, name))
    if not directory.is_dir():
        return []
    found: list[Path] = []
    for folder, folders, files in os.walk(directory, onerror=_raise):
        links = [each for each in folders if os.path.islink(os.path.join(folder, each))]
        found += [Path(folder, each) for each in [*files, *links] if fnmatch(each, name)]
        if not deep:
            break
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def list_states(directory: Path) -> dict[Path, FileState]:
    """Return size and times of each file in a folder and in the folders in it, in the order of their paths.

    Links count as files and are not followed. A folder that is not there has no files.

    Raises:
        OSError: If a folder cannot be read.
    """
    if objects.is_mirror(directory):
        listed = sorted(objects.list_objects(directory, recursive=True).items())
        return {
            path: FileState(state.num_bytes, state.modified_seconds * 10**9, 0)
            for path, state in listed
            if state is not None
        }
    states = {}
    for path in list_files(directory, "**/*"):
        with contextlib.suppress(FileNotFoundError):  # deleted just now
            status = path.lstat()
            states[path] = FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return states


def list_folders(directory: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none if there is no such folder."""
    if objects.is_mirror(directory):
        return sorted(path for path, state in objects.list_objects(directory).items() if state is None)
    return sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def remove(path: Path) -> None:
    """Delete a file; it may be missing."""
    if objects.is_mirror(path):
        objects.delete_object(path)
    path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder with all that is in it; it may be missing."""
    if objects.is_mirror(folder):
        objects.delete_folder(folder)
    shutil.rmtree(folder, ignore_errors=objects.is_mirror(folder))


def sha256_of(path: Path) -> str:
    """Return the digest of a file; of an object that of the bytes in the store, not of this node's copy.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    return objects.hash_object(path) if objects.is_mirror(path) else file_sha256(path)


@contextlib.contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """Yield a path at which a file can be opened; of an object that of a copy made now, which is deleted again.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not objects.is_mirror(path):
        yield path
        return
    state = objects.object_state(path)
    if state is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", objects.object_url(path))
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        objects.download(path, state, aside)
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def fetch(path: Path) -> Path:
    """Return a path at which the file can be opened; an object is copied into this node's cache first.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if objects.is_mirror(path):
        return objects.fetch(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


def store(path: Path) -> None:
    """Write a local file that another program made in a mirror as its object; nothing to do on a disk."""
    if objects.is_mirror(path):
        objects.store(path, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
