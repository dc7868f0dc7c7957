"""Trained trials and sweeps as their files describe them, without torch: which trial is best, how it is used.

Nothing here changes a file: a damaged one counts as missing.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from vidflow.config.schema import Trials
from vidflow.config.search import objective_of
from vidflow.config.tasks import Objective, TaskName, facts_of
from vidflow.config.tracking_uri import without_credentials
from vidflow.errors import VidflowError
from vidflow.records import EpochResult, TrialResult
from vidflow.stages.finish import peek_manifest
from vidflow.store.layout import BEST, LAST, TRIAL_RESULT, fetch, list_folders, read_sealed

SWEEPS, TRIALS = "sweeps", "trials"
RESULT_FIELDS = {field.name for field in fields(TrialResult)} - {"directory"} | {"files"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSweep:
    """A finished sweep.

    Attributes:
        directory: Its folder.
        run_id: Its run in MLflow.
        objective: Metric that its config ranks trials by; None is each task's own.
        mode: Whether more of it is better; None is each task's own.
        features: Name -> identity of its feature sets.
        keys: Keys of its trials.
        runs: Key -> run in MLflow of the trials.
    """

    directory: Path
    run_id: str
    objective: str | None
    mode: str | None
    features: dict[str, str]
    keys: list[str]
    runs: dict[str, str]

    def objective_of(self, task: TaskName) -> Objective:
        """Return what ranks the trials of a task."""
        return objective_of(Trials(objective=self.objective, mode=cast(Any, self.mode)), task)

    def results(self) -> list[TrialResult]:
        """Return the trials whose results are there."""
        folder = self.directory.parent.parent / TRIALS
        found = (read_trial(folder / key) for key in self.keys)
        return [result for result in found if result is not None]

    def score(self, result: TrialResult) -> float | None:
        """Return the objective of a trial's best epoch; None if it has none."""
        return None if result.best is None else result.best.metrics.get(self.objective_of(task_of(result)).metric)

    def best(self) -> dict[TaskName, TrialResult]:
        """Return the best trial of each task; those that failed do not count."""
        best: dict[TaskName, TrialResult] = {}
        for result in self.results():
            task, score = task_of(result), self.score(result)
            if score is None or result.status == "failed":
                continue
            known = best.get(task)
            sign = 1 if self.objective_of(task).mode == "max" else -1
            if known is None or sign * score > sign * cast(float, self.score(known)):
                best[task] = result
        return best

    def best_trial(self) -> TrialResult:
        """Return the best trial of a sweep over one task.

        Raises:
            VidflowError: If no trial has succeeded, or the sweep has several tasks.
        """
        best = list(self.best().values())
        if not best:
            raise VidflowError(f"{self.directory}: no trial of this sweep has succeeded")
        if len(best) > 1:
            commands = {task: predict_command(str(each.directory), task=task) for task, each in self.best().items()}
            lines = [f"  {self.describe(result)}: {commands[task_of(result)]}" for result in best]
            raise VidflowError("\n".join([f"{self.directory}: a sweep over {len(best)} tasks; name a trial:", *lines]))
        return best[0]

    def describe(self, result: TrialResult) -> str:
        """Return a trial in words."""
        score, metric = self.score(result), self.objective_of(task_of(result)).metric
        measured = "no epoch" if score is None else f"{metric} {score:.3f}"
        return f"{task_of(result)}, core={result.settings['core']}, {measured}"


def read_trial(directory: Path) -> TrialResult | None:
    """Return the result of a trial, without comparing its files with their digests.

    None if the trial is not over, or another version of this program wrote it.
    """
    values = read_sealed(directory / TRIAL_RESULT)
    if values is None or values.keys() != RESULT_FIELDS:
        return None
    del values["files"]
    history = tuple(EpochResult(**epoch) for epoch in values.pop("history"))
    return TrialResult(**values, history=history, directory=directory)


def read_sweep(directory: Path) -> FinishedSweep | None:
    """Return the sweep in a folder; None if there is none, or it is not finished."""
    manifest = peek_manifest(directory)
    if manifest is None or manifest.stage != "sweep":
        return None
    settings, details = manifest.settings, manifest.details
    trials = settings.get("trials", {})  # sweeps of older versions record no settings
    return FinishedSweep(
        directory=directory,
        run_id=details["run_id"],
        objective=trials.get("objective"),
        mode=trials.get("mode"),
        features=settings.get("features", {}),
        keys=details["trials"],
        runs=details.get("runs", {}),
    )


def read_sweeps(root: Path) -> Iterator[FinishedSweep]:
    """Yield the finished sweeps below a root, in the order of their names."""
    for directory in list_folders(root / SWEEPS):
        if (sweep := read_sweep(directory)) is not None:
            yield sweep


def task_of(result: TrialResult) -> TaskName:
    """Return the task of a trial."""
    return cast(TaskName, result.settings["task"])


def read_header(directory: Path) -> tuple[dict[str, Any], tuple[EpochResult, ...]]:
    """Return what the header of a trial's weights says of the trial, and the epochs of its snapshot."""
    for name in (LAST, BEST):
        try:
            with safe_open(fetch(directory / name), framework="np") as stored:
                metadata = json.loads((stored.metadata() or {})["vidflow"])
        except (OSError, SafetensorError, KeyError, ValueError):  # not there, or damaged; the other file may do
            continue
        return metadata["identity"], tuple(EpochResult(**epoch) for epoch in metadata.get("history", ()))
    return {}, ()


def is_usable(settings: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether what `predict_command` recommends works: core and encoder of the trial run frame by frame.

    Trials that only train a core are always of use.

    Args:
        settings: The trial's settings.
        identity: What the header of its weights says of it; empty if that is not known.
    """
    if facts_of(settings["task"]).predicts == "tokens":
        return True
    if settings["core"] == "vtm" and set(settings["vtm_groups"] or ()) != {1}:
        return False
    encoder = identity.get("features", {}).get("encoder", {})
    adapted = (identity.get("encoder") or {}).get("adaptation") or encoder.get("clip_parts") or {}
    sees_clips = any(adapted.get(name) for name in ("temporal_embedding", "num_frames", "interpolate_after"))
    return not (sees_clips or max(adapted.get("offsets", ()), default=0) > 0 or "family" in encoder)


def predict_command(trial: str, *, tracking_uri: str | None = None, task: TaskName = "classification") -> str:
    """Return the command line that uses a trial on a video; the user replaces `VIDEO`, and the numbers of a query.

    A trial that only trains a core is used as the start of other trials, of a config that the user names.

    Args:
        trial: The MLflow run of the trial, or the trial's folder.
        tracking_uri: Store of the run; None for a folder.
        task: The trial's task; some tasks need a box or a point to follow.
    """
    if facts_of(task).predicts == "tokens":
        return shlex.join(["vidflow", "sweep", "CONFIG", f"trials.trial.init_from={trial}"])
    words = ["vidflow", "predict", trial, "VIDEO"]
    if tracking_uri is not None:
        words += ["--tracking-uri", without_credentials(tracking_uri)]
    match facts_of(task).predicts:
        case "boxes":
            words += ["--box", "X0,Y0,X1,Y1"]
        case "points":
            words += ["--point", "X,Y"]
        case _:
            pass
    return shlex.join([*words, "--out", "predicted.mp4"])


__all__ = [
    "FinishedSweep",
    "is_usable",
    "predict_command",
    "read_header",
    "read_sweep",
    "read_sweeps",
    "read_trial",
    "task_of",
]
