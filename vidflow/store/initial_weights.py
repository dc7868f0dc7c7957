"""Where the weights are that `init_from` names, and their digest, by which they are part of a trial's identity.

No torch, whose import takes seconds.
"""

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vidflow.config.roots import place_path, root_path
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates, key_of
from vidflow.errors import VidflowError
from vidflow.files import FileState, file_state
from vidflow.store.layout import BEST, TRIAL_RESULT, exists, fetch

RUN_ID = re.compile(r"[0-9a-f]{32}")
FOLDER = "initial"
"""Folder of a root with the weights of runs in MLflow, which workers cannot ask."""
_TRIALS = "trials"
_ENCODED = "task."
_FRONT = ("token_scale.", "depth_mixing.", "token_adapter.", "core.")


@dataclass(frozen=True, slots=True)
class InitialFile:
    """The weights that a trial starts from.

    Attributes:
        path: The `best.safetensors` of the earlier trial.
        sha256: Digest of the core's weights and of what is in front of it, whatever the file's name and readout.
        trial: Key of the earlier trial.
        features: Key of the feature set that it was trained on; empty if it read frames.
    """

    path: Path
    sha256: str
    trial: str
    features: str = ""


def front_name(name: str) -> str | None:
    """Return the name, within a task, of a weight in front of the readout; None for other weights."""
    own = name.removeprefix(_ENCODED)
    return own if own.startswith(_FRONT) else None


def list_initial(config: Config) -> list[str]:
    """Return what the candidates of a search name as `init_from`, each once."""
    named = [trial.init_from for trial in draw_candidates(config)[0]]
    return list(dict.fromkeys(source for source in named if source is not None))


def read_initial(config: Config, source: str) -> InitialFile:
    """Return the weights that `init_from` names; a process reads an unchanged file once.

    Raises:
        VidflowError: There is no such trial, it is not finished, or the file is no trial's.
    """
    key, path = f"{key_of(config.trials, 'init_from')}: got {source!r}", _find(config, source)
    local = fetch(path)
    try:
        sha256, trial, features = _read(local, file_state(str(local)))
    except OSError as error:
        raise VidflowError(f"{key}: {path} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VidflowError(f"{key}, wanted a trial; {path} is not the {BEST} of one") from error
    return InitialFile(path, sha256, trial, features)


def has_initial(config: Config) -> bool:
    """Whether all weights that trials start from are there; those of a run in MLflow are copied by a check."""
    try:
        for source in list_initial(config):
            read_initial(config, source)
    except VidflowError:
        return False
    return True


def run_file(config: Config, run_id: str) -> Path:
    """Return where the weights of a run in MLflow are copied to."""
    return root_path(config) / FOLDER / f"{run_id}.safetensors"


def _find(config: Config, source: str) -> Path:
    key = f"{key_of(config.trials, 'init_from')}: got {source!r}"
    root, place = root_path(config), place_path(config, source)
    for folder in (place, root / _TRIALS / source):
        if exists(folder / BEST):
            if not exists(folder / TRIAL_RESULT):
                raise VidflowError(f"{key}, a trial that is not finished; train it to its end first")
            return folder / BEST
    for path in (place, run_file(config, source)):
        if exists(path) and not path.is_dir():
            return path
    if RUN_ID.fullmatch(source):
        raise VidflowError(
            f"{key}, a run in MLflow whose weights are not in {root / FOLDER}; `vidflow sweep` and `vidflow plan` with "
            "this configuration copy them there"
        )
    raise VidflowError(
        f"{key}, no such trial; wanted the key of a finished trial in {root / _TRIALS}, a trial's folder, its {BEST}, "
        "or the id of its run in MLflow; `vidflow ls` lists them"
    )


@functools.cache
def _read(path: Path, _: FileState) -> tuple[str, str, str]:
    """Return the digest of the weights in front of the readout, and the keys of the trial and its feature set.

    Source: https://huggingface.co/docs/safetensors, Format: the size of the header in 8 bytes, the header in JSON, the
    data.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(file.read(size))
        identity = json.loads(header.pop("__metadata__")["vidflow"])["identity"]
        trial, features = str(identity["key"]), str(identity["features"].get("fingerprint", ""))
        front = {own: row for name, row in header.items() if (own := front_name(name)) is not None}
        if not front:
            raise ValueError("no core")
        return _digest(file, 8 + size, front), trial, features


def _digest(file: BinaryIO, start: int, front: dict[str, dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, row in sorted(front.items()):
        digest.update(f"{name} {row['dtype']} {row['shape']}\n".encode())
        begin, end = row["data_offsets"]
        file.seek(start + begin)
        digest.update(file.read(end - begin))
    return digest.hexdigest()


__all__ = ["FOLDER", "RUN_ID", "InitialFile", "front_name", "has_initial", "list_initial", "read_initial", "run_file"]
