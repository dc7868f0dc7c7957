"""The files of a trial's folder, and how they stay consistent if their writer is killed.

`last.safetensors` is the source of truth: it is replaced in one step after every epoch, and holds history and weights.
`best.safetensors` and `predictions.safetensors` are written next, if the epoch is the best. A kill in between leaves
them one epoch behind; `last.safetensors` then still holds the best epoch, so `publish_best` can write them later.
`result.json` marks a trial as over, and lists the trial's files. If one of them is missing or damaged, the trial is not
over. One process at a time works on a folder.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidflow.errors import DamagedError, VidflowError
from vidflow.models.tensor_checks import state_sha256
from vidflow.records import EpochResult, TrialResult, TrialStatus
from vidflow.store.digests import check_once
from vidflow.store.layout import BEST as BEST
from vidflow.store.layout import LAST as LAST
from vidflow.store.layout import PREDICTIONS as PREDICTIONS
from vidflow.store.layout import (
    TRIAL_RESULT,
    exists,
    fetch,
    list_file,
    publish,
    publish_json,
    read_listed,
    read_sealed,
    remove,
    seal_of,
    set_aside,
)

_METADATA = "vidflow"
_DIGEST = "tensors_sha256"
log = logging.getLogger(__name__)

Setting = str | int | float | bool | list[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialIdentity:
    """Identity of a trial, and how its module is built.

    Attributes:
        key: Fingerprint of everything that decides the trial.
        settings: The trial's fields, flat.
        recipe: Keyword arguments that build the module again.
        num_parameters: Trained parameters.
        features: Metadata of its features: the encoder, class names, how clips were cut; and their `fps`.
        encoder: What of the encoder runs in the trial, an `EncoderPart` as plain values; empty if nothing does. If
            it is not, weights are below `task.` and, of what is trained in the encoder, below `encoder.`.
        initial: Key of the `trial` that it started from, and `sha256` of the weights taken from it; empty without one.
    """

    key: str
    settings: dict[str, Setting]
    recipe: dict[str, Any]
    num_parameters: int
    features: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A trial after an epoch.

    Attributes:
        identity: The trial.
        history: Results of all epochs so far.
        model: The module's state.
        optimizer: The optimizer's moments.
        predictions: Predictions on the validation split, if this epoch is the best so far; else empty.
    """

    identity: TrialIdentity
    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    predictions: dict[str, Tensor] = field(default_factory=dict)


def write_snapshot(directory: Path, snapshot: Snapshot) -> None:
    """Replace the snapshot and, if its epoch is the best, the best weights and their predictions."""
    groups = {"model": snapshot.model, "optimizer": snapshot.optimizer, "predictions": snapshot.predictions}
    tensors = {f"{group}/{name}": tensor for group, part in groups.items() for name, tensor in part.items()}
    history = [asdict(result) for result in snapshot.history]
    _write_tensors(directory / LAST, tensors, {"identity": asdict(snapshot.identity), "history": history})
    if snapshot.history[-1].is_best:
        _publish_best(directory, snapshot)


def publish_best(directory: Path, snapshot: Snapshot) -> None:
    """Write the best weights and their predictions from the snapshot, if they are older than it or damaged.

    Raises:
        DamagedError: If the best epoch is an earlier one whose weights or predictions are missing or damaged.
    """
    best = max(result.epoch for result in snapshot.history if result.is_best)
    behind = [name for name in (BEST, PREDICTIONS) if _epoch_of(directory / name) != best]
    if not behind:
        return
    if best != snapshot.history[-1].epoch:
        raise DamagedError(
            f"{directory / behind[0]}: not that of epoch {best}, the best one; `vidflow sweep` trains the trial again"
        )
    _publish_best(directory, snapshot)


def _publish_best(directory: Path, snapshot: Snapshot) -> None:
    """Write the weights and predictions of the snapshot's last epoch."""
    epoch, identity = snapshot.history[-1].epoch, asdict(snapshot.identity)
    _write_tensors(directory / PREDICTIONS, snapshot.predictions, {"epoch": epoch})
    _write_tensors(directory / BEST, snapshot.model, {"identity": identity, "epoch": epoch})


def read_snapshot(directory: Path) -> Snapshot | None:
    """Return the snapshot of the last epoch, or None if no epoch is finished.

    Raises:
        DamagedError: If the file is damaged.
    """
    if not exists(directory / LAST):
        return None
    tensors, metadata = read_tensors(directory / LAST)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "predictions": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    return Snapshot(
        identity=TrialIdentity(**metadata["identity"]),
        history=tuple(EpochResult(**result) for result in metadata["history"]),
        **groups,
    )


def read_tensors(path: Path, *, is_own: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file that this module wrote; the file may have been copied elsewhere.

    Args:
        path: The file.
        is_own: Whether it may be set aside; if not, it is of a trial that another configuration trains.

    Raises:
        VidflowError: If there is no such file, or it cannot be read.
        DamagedError: If it is damaged; a file of a finished trial is set aside, so that the trial is trained again.
    """
    try:
        return _read_intact(fetch(path))
    except FileNotFoundError as error:
        raise VidflowError(f"{path}: no such file; the trial has not finished an epoch") from error
    except OSError as error:
        raise VidflowError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        if is_own:
            raise _damage(path, str(error)) from error
        raise DamagedError(
            f"{path}: damaged ({error}); `vidflow verify` with its root and --repair deletes it, and the command that "
            "trained it makes it again"
        ) from error


def find_damage(path: Path) -> str:
    """Return what is wrong with a file on this node that this module wrote, empty if nothing is; it is left as it is.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        _read_intact(path)
    except (DamagedError, ValueError) as error:
        return str(error)
    return ""


def _read_intact(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata after comparing them with their digest.

    Raises:
        ValueError: If the file is damaged.
        DamagedError: If an older version wrote it.
        OSError: If it cannot be read.
    """
    try:
        # Opened here first, because safetensors reports every file that it cannot open as missing.
        with path.open("rb"), safe_open(path, framework="pt") as stored:
            # Copies, because the tensors are views of a file that may be replaced or removed.
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - not a mapping
            metadata = json.loads((stored.metadata() or {})[_METADATA])
    except KeyError as error:
        raise ValueError("it does not say which trial wrote it") from error
    except (SafetensorError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if isinstance(metadata, dict) and _DIGEST not in metadata:
        raise DamagedError(f"{path}: written by an older vidflow, as it has no digest of its values; train it again")
    if not isinstance(metadata, dict) or metadata.pop(_DIGEST) != _digest_of(tensors, metadata):
        raise ValueError("not the values that a trial wrote")
    return tensors, metadata


def write_result(directory: Path, status: Literal["completed", "stopped"]) -> TrialResult:
    """Mark a trial as over, from the files in its folder; any process may do so when the trial's process has ended.

    The snapshot of a completed trial is deleted, as it is three times as large as the weights. The snapshot of a
    stopped trial is kept, so that the trial can resume from it.

    Raises:
        VidflowError: If no epoch is finished, or a file is damaged.
    """
    snapshot = read_snapshot(directory)
    if snapshot is None:
        raise VidflowError(f"{directory}: no {LAST}; the trial has not finished an epoch")
    publish_best(directory, snapshot)
    result = _result_of(snapshot, directory, status)
    _publish_result(result)
    if status == "completed":
        remove(directory / LAST)
    return result


def write_failure(directory: Path, *, key: str, settings: Mapping[str, Setting], error: str) -> TrialResult:
    """Mark a trial as failed; the epochs it finished stay in its history, unless its files are damaged."""
    try:
        snapshot = read_snapshot(directory)
        if snapshot is not None:
            publish_best(directory, snapshot)
    except VidflowError as damage:  # the failure counts all the same
        snapshot, error = None, f"{error}; {damage}"
    if snapshot is None:
        result = TrialResult(
            key=key,
            settings=dict(settings),
            status="failed",
            history=(),
            num_parameters=0,
            directory=directory,
            error=error,
        )
    else:
        result = dataclasses.replace(_result_of(snapshot, directory, "failed"), error=error)
    _publish_result(result)
    return result


def load_result(directory: Path) -> TrialResult | None:
    """Return the result of a trial, or None if it is not over or one of its files is missing or damaged."""
    values = read_listed(directory / TRIAL_RESULT)
    if values is None:
        return None
    try:
        for row in values.pop("files"):
            check_once(directory / row["file"], row["sha256"])
    except DamagedError as error:
        log.warning("%s", error)
        return None
    history = tuple(EpochResult(**result) for result in values.pop("history"))
    return TrialResult(**values, history=history, directory=directory)


def _result_of(snapshot: Snapshot, directory: Path, status: TrialStatus) -> TrialResult:
    return TrialResult(
        key=snapshot.identity.key,
        settings=snapshot.identity.settings,
        status=status,
        history=snapshot.history,
        num_parameters=snapshot.identity.num_parameters,
        directory=directory,
    )


def _publish_result(result: TrialResult) -> None:
    values = asdict(result)
    # The folder may have been moved or mounted elsewhere.
    del values["directory"]
    names = (BEST, PREDICTIONS) if result.best is not None else ()
    publish_json(
        result.directory / TRIAL_RESULT, {**values, "files": [list_file(result.directory / name) for name in names]}
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    with publish(path) as aside:
        on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        sealed = {**metadata, _DIGEST: _digest_of(on_host, metadata)}
        # All metadata under one name, because safetensors orders names differently in every process.
        save_tensors(on_host, aside, {_METADATA: json.dumps(sealed)})


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: If the system refuses the write, for example because the disk is full.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        # safetensors gives the system's error number only in its text.
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


def _digest_of(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """Return the digest of a file's content: the metadata, and the name, type, shape and bytes of each tensor."""
    return hashlib.sha256(f"{seal_of(metadata)} {state_sha256(tensors)}".encode()).hexdigest()


def _damage(path: Path, problem: str) -> DamagedError:
    """Return the error for a damaged file; set it aside only if a finished trial lists it, as any path may be given."""
    listed = read_sealed(path.with_name(TRIAL_RESULT)) or {}
    is_ours = any(row["file"] == path.name for row in listed.get("files", ()))
    done = f"; {set_aside(path)}" if is_ours else ""
    return DamagedError(f"{path}: damaged ({problem}){done}; `vidflow sweep` trains the trial again")


def _epoch_of(path: Path) -> int:
    """Return the epoch of a file; 0 if the file is missing or damaged."""
    try:
        return int(read_tensors(path)[1]["epoch"]) if exists(path) else 0
    except DamagedError:
        return 0
