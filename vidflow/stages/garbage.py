"""Find what no given config refers to below a root, and delete it.

A folder loses first the file that marks it as finished, then the entries of its files, then the files. So a folder that
is half deleted counts as unfinished. Nothing outside the root is touched, and no link is followed.
"""

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vidflow.objects import is_mirror
from vidflow.stages.references import References
from vidflow.stages.root_files import INDEX, KeyFolder, RootFiles
from vidflow.stages.scan import ScanInput
from vidflow.store.layout import exists, has_files, read_sealed, remove, remove_folder
from vidflow.store.rows import read_columns

# In this order, so that a kill in between never leaves something without what it was made from.
_ORDER = ("reports", "sweeps", "trials", "evaluations", "heads", "features", "shards", "videos", "plans")
_NUM_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Something that no config refers to.

    Attributes:
        path: The folder or file.
        kind: Its stage, `leftover` or `index`.
        num_bytes: Its size.
        changed: When the newest file in it was changed, in seconds since 1970; None if that is not known.
        files: The files to delete, in order.
    """

    path: Path
    kind: str
    num_bytes: int
    changed: float | None
    files: tuple[Path, ...]


def find_garbage(root: Path, references: References, kept: Collection[Path] = ()) -> list[Garbage]:
    """Return what the references do not name, in the order in which to delete it.

    Args:
        root: The root.
        references: What all given configs refer to.
        kept: Further folders that stay.

    Raises:
        OSError: If a folder cannot be read.
    """
    files, stay = RootFiles(root), {*references.folders, *kept}
    folders = [
        each
        for each in files.folders()
        if each.directory not in stay and each.stage not in references.stages and not _is_evaluated(each, references)
    ]
    folders.sort(key=lambda each: (_ORDER.index(each.stage), each.directory))
    found = [_garbage(files, each.directory, each.stage, _in_order(each)) for each in folders]
    gone = {path for each in found for path in each.files}
    leftovers = [path for path, role in files.roles.items() if role == "leftover" and path not in gone]
    found += [_garbage(files, path, "leftover", [path]) for path in leftovers]
    return [*found, *(_garbage(files, part, INDEX, [part, beside]) for part, beside in _replaced(files))]


def remove_garbage(root: Path, garbage: Sequence[Garbage]) -> Iterator[Garbage]:
    """Delete, and yield each as it is gone; only the holder of the root's lock may call this."""

    def delete(each: Garbage) -> Garbage:
        if is_mirror(root) and each.kind in _ORDER:
            remove(each.files[0])
            remove_folder(each.path)
            return each
        for _ in remove_files(root, each.files):
            pass
        if each.path.is_dir() and not each.path.is_symlink():
            _remove_empty_below(each.path)  # Ray Tune leaves empty folders
        return each

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for _, of_one_kind in itertools.groupby(garbage, key=lambda each: each.kind):
            yield from pool.map(delete, of_one_kind)


def remove_files(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Delete files in their order, and folders in their place with all that is in them; yield what is gone.

    Folders that become empty go too. What is behind a link stays.

    Raises:
        ValueError: If a path leads out of the root; that is a bug.
    """
    for path in paths:
        if ".." in path.parts or not path.is_relative_to(root) or path == root:
            raise ValueError(f"{path}: not below {root}")
        if is_behind_link(root, path):
            continue
        if path.is_symlink() or (exists(path) and not path.is_dir()):
            remove(path)
        elif has_files(path):
            remove_folder(path)
        else:
            continue
        yield path
        folders = path.parents[: len(path.relative_to(root).parts) - 1]
        for above in folders[:-1]:  # not the folder of the stage
            _remove_empty(above)


def is_behind_link(root: Path, path: Path) -> bool:
    """Whether one of the folders between a root and a path is a link."""
    return any(above.is_symlink() for above in path.parents[: len(path.relative_to(root).parts) - 1])


def _remove_empty_below(folder: Path) -> None:
    for each, _, _ in os.walk(folder, topdown=False):
        _remove_empty(Path(each))


def _remove_empty(folder: Path) -> None:
    # pyarrow leaves a mark of the folder in an object store.
    if is_mirror(folder) and not has_files(folder):
        remove_folder(folder)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()


def _garbage(files: RootFiles, path: Path, kind: str, inner: Sequence[Path]) -> Garbage:
    states = [files.states[each] for each in inner if each in files.states]
    return Garbage(
        path=path,
        kind=kind,
        num_bytes=sum(state.num_bytes for state in states),
        changed=max((state.modified_ns / 1e9 for state in states), default=None),
        files=tuple(inner),
    )


def _in_order(folder: KeyFolder) -> list[Path]:
    """Return the files of a folder in the order in which to delete them."""
    return sorted(folder.files, key=lambda path: (path != folder.top, path.suffix != ".json", path))


def _is_evaluated(folder: KeyFolder, references: References) -> bool:
    """Whether a folder of an evaluation may belong to a config that evaluates.

    Which points a config has is decided on its workers, so what was made from shards that stay stays, and so do pages
    and fitted models.
    """
    if folder.stage not in ("evaluations", "heads") or not references.evaluates:
        return False
    entries = (read_sealed(path) or {} for path in folder.files if path.name.endswith(".npz.json"))
    sources = {entry.get("details", {}).get("source") for entry in entries}
    return not sources or bool(sources & references.shards)


def _replaced(files: RootFiles) -> Iterator[tuple[Path, Path]]:
    """Yield the parts of the index whose every scan a newer part replaces, each with the file of its digest."""
    known: set[tuple[str, bool]] = set()
    for part in reversed([each for each in files.files if each.match(f"{INDEX}/*.parquet")]):
        if is_behind_link(files.root, part):
            continue
        columns = read_columns(part, ScanInput)
        rows = set(zip(columns["path"], columns["is_video"], strict=True))
        if rows <= known:
            yield part, part.with_name(f"{part.name}.json")
        known |= rows


__all__ = ["Garbage", "find_garbage", "is_behind_link", "remove_files", "remove_garbage"]
