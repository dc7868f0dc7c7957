"""Which files are below an experiment's root, and what each is, from its place and name alone."""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vidflow.objects import is_mirror
from vidflow.store.initial_weights import FOLDER as INITIAL
from vidflow.store.journal import JOURNAL
from vidflow.store.layout import BEST, LAST, PREDICTIONS, STAGE_MANIFEST, TRIAL_RESULT, list_folders, list_states

Role = Literal["list", "made", "weights", "leftover", "foreign", "unknown"]
"""What is known of a file.

- `list`: a sealed JSON file, which may list others.
- `made`: a file that such a list should name.
- `weights`: a `.safetensors` of a trial or copied from its run in MLflow, which holds its own digest.
- `leftover`: the temporary file of a killed writer, or a damaged file that was set aside.
- `foreign`: a file of another program, or one whose bytes do not matter; nothing holds its digest.
- `unknown`: vidflow makes no such file.
"""
KEY = re.compile(r"[0-9a-f]{16}")
STAGE_FOLDERS = ("videos", "shards", "features", "sweeps", "trials", "reports", "plans", "evaluations", "heads")
"""Folders that hold one folder per address."""
INDEX = "index"
KEPT = "kept"
_TUNE = "tune"
_MADE = (".tar", ".arrow", ".parquet", ".npz", ".mp4", ".csv", ".html", ".tex")
_LEFTOVERS = (".*.tmp", "*.damaged", "*.partial")
_LEFTOVER_FOLDERS = (".plan-*", ".head-*", ".vidflow-*")
FOREIGN = {
    ".lock": "the root's lock",
    ".lease": "the root's lock in an object store",
    ".nodes": "the answers of nodes that see the root",
    "mlflow.db*": "MLflow's, which keeps no digests",
    "mlartifacts": "MLflow's, which keeps no digests",
    "tracks": "made again from the annotations each time they are read",
}
"""Names directly in a root, and whose they are."""
TUNE_OWNER = "Ray Tune's, which are not read again"


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The folder of one address.

    Attributes:
        directory: The folder.
        files: The files in it, also those in its folders.
    """

    directory: Path
    files: list[Path] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """Name of the folder that holds it, such as `shards`."""
        return self.directory.parent.name

    @property
    def top(self) -> Path:
        """The file that marks it as finished."""
        return self.directory / (TRIAL_RESULT if self.stage == "trials" else STAGE_MANIFEST)


class RootFiles:
    """The files below a root."""

    def __init__(self, root: Path) -> None:
        """List the files.

        Raises:
            OSError: If a folder cannot be read.
        """
        self.root, self.states = root, list_states(root)
        """The root, and size and times of each file below it."""
        self.files = list(self.states)
        self._depth = len(root.parts)
        self.roles = {path: file_role(path.parts[self._depth :]) for path in self.files}
        """What is known of each file."""

    def folders(self) -> list[KeyFolder]:
        """Return the folders of addresses that hold a file; also those of unfinished work."""
        found: dict[Path, KeyFolder] = {}
        for path in self.files:
            match path.parts[self._depth :]:
                case (str(stage), str(key), _, *_) if stage in STAGE_FOLDERS and KEY.fullmatch(key):
                    directory = self.root / stage / key
                    found.setdefault(directory, KeyFolder(directory)).files.append(path)
        return list(found.values())

    def links(self) -> list[Path]:
        """Return the links that take the place of a stage's folder or of one in it; they are not followed."""
        if is_mirror(self.root):
            return []
        stages = [self.root / name for name in (*STAGE_FOLDERS, INDEX)]
        linked = [stage for stage in stages if stage.is_symlink()]
        inner = [each for stage in stages if stage not in linked for each in list_folders(stage)]
        return [*linked, *(each for each in inner if each.is_symlink())]

    def misplaced_folders(self) -> Iterator[Path]:
        """Yield the folders that have the name of a file that vidflow makes there."""
        if is_mirror(self.root):  # a folder is there because of what is in it
            folders = {above for path in self.files for above in path.parents if above.is_relative_to(self.root)}
            yield from filter(self._is_file_name, sorted(folders - {self.root}))
            return
        for stage in (self.root / name for name in (*STAGE_FOLDERS, JOURNAL, INDEX)):
            inner = [] if stage.is_symlink() else [each for each in list_folders(stage) if not each.is_symlink()]
            inner += [] if stage.name == INDEX else [each for key in inner for each in list_folders(key)]
            yield from filter(self._is_file_name, inner)

    def _is_file_name(self, path: Path) -> bool:
        return file_role(path.parts[self._depth :]) in ("list", "made", "weights")


def file_role(parts: tuple[str, ...]) -> Role:
    """Say what is known of a file by its path below the root."""
    name, in_tune = parts[-1], parts[0] == "sweeps" and parts[2:3] == (_TUNE,)
    if any(fnmatch.fnmatch(part, pattern) for part in parts[:-1] for pattern in _LEFTOVER_FOLDERS):
        return "leftover"
    if foreign_owner(parts) is not None:
        return "foreign"
    if any(fnmatch.fnmatch(name, pattern) for pattern in _LEFTOVERS):
        return "leftover"
    if parts[0] == JOURNAL and len(parts) == 3 and name.endswith(".json"):
        return "list"
    if parts[0] == INITIAL and len(parts) == 2 and name.endswith(".safetensors"):
        return "weights"
    if parts[0] == INDEX and (len(parts) == 2 or (len(parts) == 3 and parts[1] == KEPT)):
        return _made_or_list(name) if name.endswith((".parquet", ".json")) else "unknown"
    if in_tune or len(parts) != 3 or parts[0] not in STAGE_FOLDERS or not KEY.fullmatch(parts[1]):
        return "unknown"
    if parts[0] == "heads":  # JSON files that other libraries read are not sealed
        return "list" if name == STAGE_MANIFEST else "made"
    if parts[0] == "trials" and name.endswith(".safetensors"):
        # A user may have merged a trial's adapters into a file beside them.
        return "weights" if name in (BEST, LAST, PREDICTIONS) else "unknown"
    return _made_or_list(name)


def foreign_owner(parts: tuple[str, ...]) -> str | None:
    """Return whose file it is, if nothing holds its digest."""
    if parts[0] == "sweeps" and parts[2:3] == (_TUNE,):
        return TUNE_OWNER
    return next((owner for pattern, owner in FOREIGN.items() if fnmatch.fnmatch(parts[0], pattern)), None)


def _made_or_list(name: str) -> Role:
    if name.endswith(".json"):
        return "list"
    return "made" if name.endswith(_MADE) else "unknown"


__all__ = ["FOREIGN", "INDEX", "KEY", "STAGE_FOLDERS", "KeyFolder", "Role", "RootFiles", "file_role", "foreign_owner"]
