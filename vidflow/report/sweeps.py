"""Finished sweeps of any experiments, read from their folders to be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vidflow.config.fingerprints import fingerprint
from vidflow.config.load import load_config
from vidflow.config.tasks import Objective, TaskName, facts_of
from vidflow.config.tracking_uri import default_uri
from vidflow.errors import ConfigError, VidflowError
from vidflow.objects import show_urls, to_path
from vidflow.records import StageManifest, TrialResult
from vidflow.report.tables import RankedTrial, rank_trials
from vidflow.stages.cost import sample_counts
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import address_of, manifest_seal, read_manifest
from vidflow.stages.trained import predict_command
from vidflow.store.features import FeatureReader
from vidflow.store.layout import list_folders
from vidflow.training.snapshot import load_result

PAGE = "report.html"
"""Name of the page in a report's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSweep:
    """A finished sweep.

    Attributes:
        name: What the reader calls it: the report's title, or the root's name.
        directory: Its folder, `ROOT/sweeps/KEY`.
        manifest: What it has made.
        settings: Its `trials`, `features` and `tracking`.
    """

    name: str
    directory: Path
    manifest: StageManifest
    settings: Mapping[str, Any]

    @property
    def root(self) -> Path:
        """The experiment's root."""
        return self.directory.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesUsed:
    """The feature set of a trial.

    Attributes:
        tokens_per_frame: Mean number of tokens per frame, of clips spread over the set.
        bytes_per_clip: Size on disk.
        seconds_per_clip: Worker seconds to make it.
        clips: Digest of its clips and their splits; equal digests mean equal validation clips.
        num_clips: Number of its clips.
    """

    tokens_per_frame: float
    bytes_per_clip: float
    seconds_per_clip: float
    clips: str
    num_clips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepBest:
    """The best trial of a sweep on one task.

    Attributes:
        sweep: The sweep.
        task: The task.
        objective: What ranks its trials.
        ranked: All its trials on the task, best first; the first one has a score.
        baseline: The trivial answer's score; None if it was not measured.
        run_id: MLflow run of the best trial; None if the sweep did not record it.
        predict: The command that runs the best trial.
        features: Its feature set; None if it is no longer on this disk.
        report: The sweep's page; None if there is none.
    """

    sweep: FoundSweep
    task: TaskName
    objective: Objective
    ranked: Sequence[RankedTrial]
    baseline: float | None
    run_id: str | None
    predict: str
    features: FeaturesUsed | None
    report: Path | None

    @property
    def best(self) -> RankedTrial:
        """The best trial."""
        return self.ranked[0]


def find_sweeps(words: Sequence[str], overrides: Sequence[str] = ()) -> list[FoundSweep]:
    """Return the finished sweeps that words name, each once, in their order.

    Args:
        words: Roots of experiments, folders of sweeps, and configs.
        overrides: `key=value` settings for the configs.

    Raises:
        ConfigError: With every word that names no finished sweep.
    """
    found: dict[Path, FoundSweep] = {}
    problems = []
    for word in words:
        try:
            for sweep in _find(to_path(word), overrides):
                found.setdefault(sweep.directory.resolve(), sweep)
        except VidflowError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return list(found.values())


def read_bests(sweep: FoundSweep) -> list[SweepBest]:
    """Return the best trial of each task of a sweep; a task whose trials have no score is left out.

    Raises:
        VidflowError: If the result of a trial is missing or damaged.
    """
    results = [_load(sweep, key) for key in sweep.manifest.details["trials"]]
    bests = []
    for task in dict.fromkeys(cast(TaskName, result.settings["task"]) for result in results):
        usual, trials = facts_of(task).objective, sweep.settings["trials"]
        objective = Objective(trials["objective"] or usual.metric, trials["mode"] or usual.mode)
        ranked = rank_trials([result for result in results if result.settings["task"] == task], *objective)
        if ranked[0].is_best:
            bests.append(_best(sweep, task, objective, ranked))
    return bests


def _find(path: Path, overrides: Sequence[str]) -> list[FoundSweep]:
    if path.is_file():
        return [_of_config(path, overrides)]
    folders = list_folders(path / "sweeps") or [path]
    made = {folder: read_manifest(folder) for folder in folders}
    sweeps = {folder: each for folder, each in made.items() if each is not None and each.stage == "sweep"}
    if not sweeps:
        raise ConfigError(
            f"{path}: no finished sweep here; wanted an experiment's root, a folder ROOT/sweeps/KEY, or a config"
        )
    if old := [str(folder) for folder, each in sweeps.items() if not each.settings]:
        raise ConfigError(f"{', '.join(old)}: does not record its settings; name its config instead of its folder")
    root = path if folders != [path] else path.parent.parent
    shared = root.resolve().name
    return [
        FoundSweep(
            name=f"{shared} {folder.name[:6]}" if len(sweeps) > 1 else shared,
            directory=folder,
            manifest=manifest,
            settings=manifest.settings,
        )
        for folder, manifest in sweeps.items()
    ]


def _of_config(path: Path, overrides: Sequence[str]) -> FoundSweep:
    experiment = Experiment(load_config([path], overrides), [str(path), *overrides])
    manifest = experiment.manifest(experiment.sweep) if experiment.shards is not None else None
    if manifest is None:
        raise ConfigError(f"{path}: its sweep is not finished; run `{experiment.command('run')}` first")
    return FoundSweep(
        name=experiment.config.report.title,
        directory=experiment.sweep.directory,
        manifest=manifest,
        settings=experiment.sweep.settings,
    )


def _load(sweep: FoundSweep, key: str) -> TrialResult:
    directory = sweep.root / "trials" / key
    result = load_result(directory)
    if result is None:
        raise VidflowError(f"{directory}: a file of this trial is gone or damaged; `vidflow sweep` trains it again")
    return result


def _best(sweep: FoundSweep, task: TaskName, objective: Objective, ranked: Sequence[RankedTrial]) -> SweepBest:
    best = ranked[0].result
    run_id = sweep.manifest.details.get("runs", {}).get(best.key)
    uri = sweep.settings["tracking"]["uri"] or default_uri(sweep.root)
    return SweepBest(
        sweep=sweep,
        task=task,
        objective=objective,
        ranked=ranked,
        baseline=sweep.manifest.details["baselines"].get(task, {}).get(objective.metric),
        run_id=run_id,
        predict=predict_command(run_id, tracking_uri=uri, task=task)
        if run_id is not None
        else predict_command(show_urls(str(best.directory)), task=task),
        features=_read_features(sweep, str(best.settings["features"])),
        report=_find_report(sweep),
    )


def _read_features(sweep: FoundSweep, name: str) -> FeaturesUsed | None:
    """Return a feature set; None if it was removed, or made again with other clips."""
    made = ((folder, read_manifest(folder)) for folder in list_folders(sweep.root / "features"))
    found = next(
        (
            (folder, manifest)
            for folder, manifest in made
            if manifest is not None and address_of(folder, manifest).identity == sweep.settings["features"][name]
        ),
        None,
    )
    if found is None:
        return None
    directory, manifest = found
    reader = FeatureReader(directory)
    return FeaturesUsed(
        tokens_per_frame=float(sample_counts(reader).mean()),
        bytes_per_clip=manifest.num_bytes / max(1, len(reader)),
        seconds_per_clip=manifest.worker_seconds / max(1, len(reader)),
        clips=fingerprint(sorted(zip(reader.keys, reader.splits, strict=True))),
        num_clips=len(reader),
    )


def _find_report(sweep: FoundSweep) -> Path | None:
    seal = manifest_seal(sweep.manifest)
    for folder in list_folders(sweep.root / "reports"):
        made = read_manifest(folder)
        if made is not None and made.details["sweep"] == seal:
            return folder / PAGE
    return None
