"""The runs of one sweep in MLflow: what the parent run and the run of each trial say."""

import functools
import getpass
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import vidflow
from vidflow.config.encoder import encoder_title
from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Trial
from vidflow.config.search import objective_of
from vidflow.config.tasks import TaskName, facts_of
from vidflow.config.tracking_uri import store_uri
from vidflow.files import file_sha256
from vidflow.models.encoder import shape_of, skeleton
from vidflow.objects import show_urls
from vidflow.records import EpochResult, TrialResult
from vidflow.report.figures import confusion_figure
from vidflow.report.results import read_classified
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment
from vidflow.stages.trained import TRIALS, is_usable, predict_command, read_header, read_sweeps
from vidflow.store.initial_weights import InitialFile, read_initial, run_file
from vidflow.store.layout import TRIAL_RESULT, fetch
from vidflow.tracking import FeatureData, ModelCode, ModelColumns, RunsView, SweepIds, Tracker, name_run, page_of
from vidflow.training.baselines import baseline_metrics
from vidflow.training.snapshot import BEST

MODEL_SCRIPT = Path(__file__).with_name("mlflow_model.py")
MODEL_CODE = ModelCode(
    name=MODEL_SCRIPT.name,
    script=MODEL_SCRIPT.read_text(encoding="utf-8"),
    requirements=[f"{name}=={version(name)}" for name in ("av", "mlflow", "safetensors", "timm", "torch")],
    settings={"weights": None},
)
# Always shown in the table of runs, beside the axes of the search.
_COLUMNS = ("core", "features", "seed")
_NOTE = "mlflow.note.content"
INIT = "vidflow.init_from"
"""Prefix of the tags that say from which trial's weights a trial started."""


class SweepRuns:
    """Writes the runs of one sweep, within a `with` block; the only writer, and every call may be repeated."""

    def __init__(self, experiment: Experiment, baselines: dict[str, dict[str, float]]) -> None:
        """Open no run yet.

        Args:
            experiment: The experiment; its features are finished.
            baselines: Task -> metrics of its trivial answer, where they are known; filled as trials end.
        """
        self._experiment, self._config = experiment, experiment.config
        tracking = self._config.tracking
        key = experiment.sweep.fingerprint
        self._tracker = Tracker(experiment.root, key, uri=store_uri(self._config), experiment=tracking.experiment)
        self._data = {name: _feature_data(experiment, name) for name in experiment.features}
        self.baselines = baselines
        self._names: dict[str, str] = {}
        self._objectives: dict[str, str] = {}
        self._opened: dict[str, str] = {}
        self._recorded: dict[str, str] | None = None

    def __enter__(self) -> Self:
        """Start to send."""
        self._tracker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the store as `Tracker` does; runs that are open when the sweep is interrupted end as killed."""
        self._tracker.__exit__(kind, error, trace)

    def ids(self) -> SweepIds:
        """Return MLflow's ids, when the store has everything."""
        return self._tracker.ids()

    def open(self, num_trials: int) -> None:
        """Find or create the parent run."""
        trials = self._config.trials
        objective = objective_of(trials, trials.trial.task)
        axes = [name for name in trials.axes if name not in _COLUMNS]
        self._tracker.open_sweep(
            name=self._config.report.title,
            params={"algorithm": trials.algorithm, "num_trials": num_trials},
            config_yaml=config_to_yaml(self._config),
            tags={**self._source, _NOTE: self._describe()},
            datasets=list(self._data.values()),
            view=RunsView(
                metric=f"best/{objective.metric}",
                curve=objective.metric,
                mode=objective.mode,
                params=(*_COLUMNS, *axes),
            ),
        )

    def open_trial(self, trial: Trial, address: Address) -> str:
        """Find or create the run of a trial, and return our name of it."""
        key = address.fingerprint
        if key not in self._opened:
            self._note_words(trial, key)
            self._opened[key] = self._tracker.open_trial(
                key,
                name=self.name(trial),
                params=asdict(trial),
                tags={**self._source, **self._origin(trial)},
                datasets=[self._data[trial.features]],
            )
        return self._opened[key]

    def log_epoch(self, key: str, result: EpochResult) -> None:
        """Log an epoch of a trial whose run is open."""
        self._tracker.log_epoch(self._opened[key], self._named(self._objectives[key], result))

    def record(self, trial: Trial, address: Address, result: TrialResult) -> None:
        """Close the run of a trial that is over: complete its epochs, store its model and figures, set its status."""
        key, content = address.fingerprint, file_sha256(fetch(address.directory / TRIAL_RESULT))[:16]
        if result.best is not None:
            self._measure_baseline(trial)
        self._note_words(trial, key)
        if self._recorded is None:
            self._recorded = self._tracker.recorded()
        if self._recorded.get(key) == content and key not in self._opened:
            return
        run, metric = self.open_trial(trial, address), self._objectives[key]
        # Without an error the text is empty, which replaces that of an earlier try that failed.
        tags = {"vidflow.status": result.status, _NOTE: f"**Failed**: {result.error}" if result.error else ""}
        history = [self._named(metric, epoch) for epoch in result.history]
        if result.best is None:
            self._tracker.finish(run, "FAILED", tags=tags, content=content)
        else:
            self._log_confusion(run, result)
            self._tracker.finish(
                run,
                "FAILED" if result.status == "failed" else "FINISHED",
                metrics={f"best/{metric}": result.best.metrics[metric]},
                step=result.best.epoch,
                tags={**tags, **_baseline_tag(self.baselines[trial.task], metric)},
                history=history,
                model=(MODEL_CODE, result.directory / BEST, model_columns(trial.task)),
                data=self._data[trial.features],
                content=content,
            )
        self._recorded[key] = content
        del self._opened[key]

    def finish(self, best: Mapping[TaskName, TrialResult], *, is_complete: bool, plan: bytes = b"") -> None:
        """Close the parent run.

        Args:
            best: Best trial of each task.
            is_complete: Whether no trial has failed.
            plan: The forecast beside what was paid, as JSON; empty without a forecast.
        """
        if plan:
            self._tracker.log_file(self._tracker.sweep, plan, "plan.json")
        metrics, tags = {}, {_NOTE: self._describe(best)}
        for task, result in best.items():
            metric, _ = objective_of(self._config.trials, task)
            if result.best is not None and result.status != "failed":
                metrics[f"best/{metric}"] = result.best.metrics[metric]
                tags |= _baseline_tag(self.baselines[task], metric)
        self._tracker.finish(self._tracker.sweep, "FINISHED" if is_complete else "FAILED", metrics=metrics, tags=tags)

    def _note_words(self, trial: Trial, key: str) -> None:
        self._names[key] = self.name(trial)
        self._objectives[key] = objective_of(self._config.trials, trial.task).metric

    def _named(self, metric: str, result: EpochResult) -> EpochResult:
        """Return an epoch with the objective first, as the UI keeps the order; `best/` has the best epoch's alone."""
        first = (f"best/{metric}", metric) if result.is_best else (metric,)
        metrics = {name: result.metrics[metric] for name in first if metric in result.metrics}
        return replace(result, metrics={**metrics, **result.metrics})

    def name(self, trial: Trial) -> str:
        """Return what distinguishes a trial from the others of its sweep."""
        return " ".join(f"{axis}={getattr(trial, axis)}" for axis in self._config.trials.axes) or trial.core

    @functools.cached_property
    def _source(self) -> dict[str, str]:
        """The tags in which MLflow says what made a run."""
        tags = {"mlflow.source.name": self._experiment.command("sweep"), "mlflow.source.type": "LOCAL"}
        if commit := _commit():
            tags["mlflow.source.git.commit"] = commit
        with suppress(KeyError, OSError):  # a container may have no name for its user
            tags["mlflow.user"] = getpass.getuser()
        return tags

    def _origin(self, trial: Trial) -> dict[str, str]:
        """Return the tags that say from which trial's weights a trial starts; none if they are random."""
        if trial.init_from is None:
            return {}
        start = read_initial(self._config, trial.init_from)
        run = trial.init_from if start.path == run_file(self._config, trial.init_from) else _run_of(start)
        return {f"{INIT}.trial": start.trial, f"{INIT}.sha256": start.sha256, **({f"{INIT}.run": run} if run else {})}

    def _describe(self, best: Mapping[TaskName, TrialResult] | None = None) -> str:
        """Return the description of the parent run as Markdown: what it is, data, best trial, report, commands."""
        lines = [self._best_line(task, result) for task, result in best.items()] if best else ["- Trials are running."]
        if best:
            page = f"[report.html](#{page_of(self._tracker.sweep)}/artifacts/report.html)"
            lines.append(f"- Report: {page}, written by `{self._experiment.command('report')}`")
        return "\n".join(
            [
                f"Temporal modules on frozen features, {self._axes()}.",
                "",
                *lines,
                f"- Again, or further: `{self._experiment.command('sweep')}`",
                "",
                "| features | encoder | clips |",
                "|---|---|---|",
                *(_data_row(data) for data in self._data.values()),
            ]
        )

    def _axes(self) -> str:
        trials = self._config.trials
        axes = ", ".join(f"`{name}`" for name in trials.axes) or "one trial"
        return f"{trials.algorithm} search over {axes}" if trials.axes else axes

    def _best_line(self, task: TaskName, result: TrialResult) -> str:
        metric, _ = objective_of(self._config.trials, task)
        if result.best is None or result.status == "failed":
            return f"- Best trial ({task}): all failed"
        baseline = self.baselines.get(task, {}).get(metric)
        without = f"; {baseline:.3f} without looking at the frames" if baseline is not None else ""
        link = f"[{self._names[result.key]}](#{page_of(name_run(self._tracker.sweep, result.key))})"
        score = f"`{metric}` {result.best.metrics[metric]:.3f} after epoch {result.best.epoch}{without}"
        use = f". Use it: `{predict_command(str(result.directory), task=task)}`"
        usable = is_usable(result.settings, read_header(result.directory)[0])
        return f"- Best trial ({task}): {link}, {score}{use if usable else ''}"

    def _measure_baseline(self, trial: Trial) -> None:
        """Measure a task's trivial answer, once because all trials share clips and truth."""
        if trial.task not in self.baselines:
            clips = self._experiment.clips_of(trial.features, trial.feed)
            by_video = trial.score_by == "video"
            self.baselines[trial.task] = baseline_metrics(
                trial.task, clips, self._config.trials.splits, by_video=by_video
            )

    def _log_confusion(self, run: str, result: TrialResult) -> None:
        classified = read_classified(result)
        if classified is not None:
            names = self._experiment.finished_shards.class_names
            self._tracker.log_file(run, confusion_figure(classified.confusion, names), "confusion.png")


def model_columns(task: TaskName) -> ModelColumns:
    """Return what the model of a task takes and gives."""
    predicts = facts_of(task).predicts
    asks = predicts in ("boxes", "points")
    return ModelColumns(
        inputs={"path": "string", "queries": "any"} if asks else {"path": "string"},
        optional=["queries"],
        outputs={"path": "string", "index": "long", "pts_seconds": "double", predicts: "any"},
    )


def _run_of(start: InitialFile) -> str:
    """Return the run in MLflow of a trial in the root of any experiment; empty if no sweep there records it."""
    folder = start.path.parent
    if folder.parent.name != TRIALS:
        return ""
    runs = (sweep.runs.get(folder.name, "") for sweep in read_sweeps(folder.parent.parent))
    return next(filter(None, runs), "")


def _feature_data(experiment: Experiment, name: str) -> FeatureData:
    """Describe a feature set; where it is not stored, the shards whose frames trials read instead."""
    address = experiment.features[name]
    is_stored = name in experiment.stored_features
    clips = experiment.clips_of(name, "features" if is_stored else "shards")
    return FeatureData(
        name=name,
        identity=address.identity,
        place=show_urls(str(clips.directory)),
        embed_dim=clips.metadata["embed_dim"]
        if is_stored
        else shape_of(skeleton(experiment.config.encoder.name)).embed_dim,
        clips=dict(sorted(Counter(clips.splits).items())),
        num_classes=len(clips.metadata["class_names"]),
        encoder=clips.metadata["encoder"]["name"] if is_stored else encoder_title(experiment.config.encoder),
    )


def _data_row(data: FeatureData) -> str:
    clips = ", ".join(f"{split} {count}" for split, count in data.clips.items())
    return f"| {data.name} | {data.encoder} | {clips} |"


def _baseline_tag(baseline: Mapping[str, float], metric: str) -> dict[str, str]:
    """Return the trivial answer's result as a tag, because the UI draws a chart for every metric."""
    return {f"baseline/{metric}": f"{baseline[metric]:.4g}"} if metric in baseline else {}


def _commit() -> str:
    """Return the git commit of this code; empty if it is not in a repository."""
    here = Path(vidflow.__file__)
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name],  # noqa: S607 - git is where the user has it
            cwd=here.parent, capture_output=True, check=True, timeout=10,
        )  # fmt: skip
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            cwd=here.parent, capture_output=True, check=True, timeout=10, text=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
