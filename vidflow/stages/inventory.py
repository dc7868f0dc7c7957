"""What is below an experiment's root, from the files alone: shards, features, sweeps and trials, and who uses what.

Nothing is changed, and torch is not imported. A folder without a manifest is unfinished; a file that its manifest
lists and that is missing or has another size makes it damaged. A manifest that is damaged itself, or that another
version of vidflow wrote, makes it unreadable.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vidflow.config.schema import Trials
from vidflow.config.search import objective_of
from vidflow.config.tasks import Mode, TaskName
from vidflow.records import TrialStatus
from vidflow.stages.finish import address_of, peek_manifest
from vidflow.stages.root_files import KEY, STAGE_FOLDERS
from vidflow.stages.trained import TRIALS, FinishedSweep, is_usable, read_header, read_sweep, read_trial
from vidflow.store.layout import STAGE_MANIFEST, have_sizes, list_folders, list_sizes

_NUM_THREADS = 16
State = Literal["done", "unfinished", "damaged", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFolder:
    """The folder of a stage: of rendered videos, shards, features, a sweep or a report.

    Attributes:
        key: Its name, the hash of the settings that decide it.
        directory: The folder.
        state: Whether it is finished.
        name: Name of a feature set in its config; else empty.
        num_clips: Clips in it.
        num_rejects: Inputs left out.
        num_bytes: Bytes in it.
        made_from: Key of what it was made from: the shards of features, the features without reduction of reduced ones.
        encoder: The encoder of features, as `name@img_size`; else empty.
        reducer: Their token reducer; `none` if there is none; else empty.
        used_by: Keys of the features that were made from shards, or of the sweeps over features.
        num_trials: Trials of a sweep, on features, or on the frames of shards.
        run_id: Run of a sweep in MLflow.
        best: Keys of the best trials of a sweep, one for each task.
    """

    key: str
    directory: Path
    state: State
    name: str = ""
    num_clips: int = 0
    num_rejects: int = 0
    num_bytes: int = 0
    made_from: str = ""
    encoder: str = ""
    reducer: str = ""
    used_by: tuple[str, ...] = ()
    num_trials: int = 0
    run_id: str = ""
    best: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeTrial:
    """The folder of a trial.

    Attributes:
        key: Its name.
        directory: The folder.
        state: How it ended; `unfinished` while it trains, and after a kill.
        settings: Its settings; empty if they are not known.
        features: Key of the features that it was trained on, if known.
        shards: Key of the shards whose frames it was trained on; empty if these were features.
        metric: What ranks it.
        mode: Whether more of that is better.
        score: That metric at its best epoch; None if it has none.
        metrics: All metrics of its best epoch, and those on the test split.
        best_epoch: That epoch; 0 if it has none.
        num_epochs: Epochs that it has finished.
        num_parameters: Trained parameters.
        sweeps: Keys of the sweeps that it is part of.
        run_id: Its run in MLflow, if a sweep says it.
        error: Why it failed; empty otherwise.
        is_usable: Whether `vidflow predict` can run it, or other trials can start from it.
    """

    key: str
    directory: Path
    state: TrialStatus | Literal["unfinished"]
    settings: dict[str, Any]
    features: str
    shards: str
    metric: str
    mode: Mode
    score: float | None
    metrics: dict[str, float]
    best_epoch: int
    num_epochs: int
    num_parameters: int
    sweeps: tuple[str, ...]
    run_id: str
    error: str
    is_usable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All that is below a root."""

    root: Path
    videos: list[MadeFolder]
    shards: list[MadeFolder]
    features: list[MadeFolder]
    sweeps: list[MadeFolder]
    trials: list[MadeTrial]
    reports: list[MadeFolder]


def is_root(folder: Path) -> bool:
    """Return whether a folder holds what an experiment makes."""
    return any(True for name in STAGE_FOLDERS for _ in _keys(folder / name))


def take_inventory(root: Path) -> Inventory:
    """Read what is below a root."""
    sweeps = [sweep for folder in _keys(root / "sweeps") if (sweep := read_sweep(folder)) is not None]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # in an object store each waits for a few answers
        trials = list(pool.map(lambda folder: _trial(folder, sweeps), _keys(root / TRIALS)))
    trials.sort(key=_rank)
    features = [_features(folder, sweeps, trials) for folder in _keys(root / "features")]
    return Inventory(
        root=root,
        videos=[_folder(folder) for folder in _keys(root / "videos")],
        shards=[_shards(folder, features, trials) for folder in _keys(root / "shards")],
        features=features,
        sweeps=[_sweep(folder, sweeps) for folder in _keys(root / "sweeps")],
        trials=trials,
        reports=[_folder(folder) for folder in _keys(root / "reports")],
    )


def _keys(folder: Path) -> Iterator[Path]:
    """Yield the folders that are named after a hash."""
    yield from (each for each in list_folders(folder) if KEY.fullmatch(each.name))


def _folder(directory: Path, **known: Any) -> MadeFolder:
    """Return the facts that all stages share, and those that are given."""
    manifest = peek_manifest(directory)
    if manifest is None:
        sizes = list_sizes(directory)
        state: State = "unreadable" if STAGE_MANIFEST in sizes else "unfinished"
        num_bytes = sum(sizes.values())
        return MadeFolder(key=directory.name, directory=directory, state=state, num_bytes=num_bytes, **known)
    listed = [*manifest.files, *manifest.entries]
    is_whole = have_sizes(directory, listed)
    return MadeFolder(
        key=directory.name,
        directory=directory,
        state="done" if is_whole else "damaged",
        num_clips=manifest.num_clips,
        num_rejects=manifest.num_rejects,
        num_bytes=manifest.num_bytes,
        **known,
    )


def _shards(directory: Path, features: list[MadeFolder], trials: list[MadeTrial]) -> MadeFolder:
    users = tuple(each.key for each in features if each.made_from == directory.name)
    return _folder(directory, used_by=users, num_trials=sum(trial.shards == directory.name for trial in trials))


def _features(directory: Path, sweeps: list[FinishedSweep], trials: list[MadeTrial]) -> MadeFolder:
    manifest = peek_manifest(directory)
    num_trials = sum(trial.features == directory.name for trial in trials)
    if manifest is None:
        return _folder(directory, num_trials=num_trials)
    settings, encoder = manifest.settings, manifest.details["metadata"]["encoder"]
    identity = address_of(directory, manifest).identity
    return _folder(
        directory,
        name=manifest.stage.partition("/")[2],
        made_from=settings.get("shards") or settings.get("dense", ""),
        encoder=f"{encoder['name']}@{encoder['img_size']}",
        reducer=(settings.get("reducer") or settings["features"]["reducer"])["name"],
        used_by=tuple(sweep.directory.name for sweep in sweeps if identity in sweep.features.values()),
        num_trials=num_trials,
    )


def _sweep(directory: Path, sweeps: list[FinishedSweep]) -> MadeFolder:
    found = next((sweep for sweep in sweeps if sweep.directory == directory), None)
    if found is None:
        return _folder(directory)
    best = tuple(result.key for result in found.best().values())
    return _folder(directory, num_trials=len(found.keys), run_id=found.run_id, best=best)


def _trial(directory: Path, sweeps: list[FinishedSweep]) -> MadeTrial:
    """Return what a trial's folder says; an unfinished one has a snapshot, which names its settings and epochs."""
    result, (identity, history) = read_trial(directory), read_header(directory)
    settings: dict[str, Any] = identity.get("settings", {})
    if result is not None:
        settings, history = result.settings, result.history
    its = [sweep for sweep in sweeps if directory.name in sweep.keys]
    best = next((epoch for epoch in reversed(history) if epoch.is_best), None)
    task: TaskName = settings.get("task", "classification")
    metric, mode = its[0].objective_of(task) if its else objective_of(Trials(), task)
    return MadeTrial(
        key=directory.name,
        directory=directory,
        state="unfinished" if result is None else result.status,
        settings=settings,
        features=identity.get("features", {}).get("fingerprint", ""),
        shards=identity.get("features", {}).get("shards", ""),
        metric=metric,
        mode=mode,
        score=None if best is None else best.metrics.get(metric),
        metrics={} if best is None else {**best.metrics, **({} if result is None else result.test)},
        best_epoch=0 if best is None else best.epoch,
        num_epochs=len(history),
        num_parameters=identity.get("num_parameters", 0),
        sweeps=tuple(sweep.directory.name for sweep in its),
        run_id=next((sweep.runs[directory.name] for sweep in its if directory.name in sweep.runs), ""),
        error="" if result is None else result.error,
        is_usable=bool(settings) and is_usable(settings, identity),
    )


def _rank(trial: MadeTrial) -> tuple[Any, ...]:
    """Sort trials by task, and the best first; those without a score come last."""
    task = trial.settings.get("task", "")
    if trial.score is None:
        return (task, True, 0.0, trial.key)
    return (task, False, trial.score if trial.mode == "min" else -trial.score, trial.key)


__all__ = ["Inventory", "MadeFolder", "MadeTrial", "is_root", "take_inventory"]
