"""The runs of one sweep in MLflow: what the parent run and the run of each trial say."""

import getpass
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import vidflow
from vidflow.config.encoder import encoder_title
from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Trial
from vidflow.config.search import objective_of
from vidflow.config.tasks import TaskName, facts_of
from vidflow.config.tracking_uri import store_uri
from vidflow.files import file_sha256
from vidflow.models.encoder import shape_of, skeleton
from vidflow.records import EpochResult, TrialResult
from vidflow.report.figures import confusion_figure
from vidflow.report.results import read_classified
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment
from vidflow.store.layout import TRIAL_RESULT
from vidflow.tracking import FeatureData, ModelCode, ModelColumns, RunsView, Tracker
from vidflow.training.baselines import baseline_metrics
from vidflow.training.snapshot import BEST

MODEL_CODE = ModelCode(
    script=Path(__file__).with_name("mlflow_model.py"),
    requirements=[f"{name}=={version(name)}" for name in ("av", "mlflow", "safetensors", "timm", "torch")],
    settings={"weights": None},
)
# Always shown in the table of runs, beside the axes of the search.
_COLUMNS = ("core", "features", "seed")
_NOTE = "mlflow.note.content"


class SweepRuns:
    """Writes the runs of one sweep; the only writer, and every call may be repeated."""

    def __init__(self, experiment: Experiment, baselines: dict[str, dict[str, float]]) -> None:
        """Open the tracking store.

        Args:
            experiment: The experiment; its features are finished.
            baselines: Task -> metrics of its trivial answer, where they are known; filled as trials end.
        """
        self._experiment, self._config = experiment, experiment.config
        self._tracker = Tracker(store_uri(self._config), self._config.tracking.experiment)
        self._data = {name: _feature_data(experiment, name) for name in experiment.features}
        self.baselines = baselines
        self.run_id = ""
        self.trial_ids: dict[str, str] = {}
        """Key -> run of the trials that were opened."""
        self._names: dict[str, str] = {}
        self._objectives: dict[str, str] = {}

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment."""
        return self._tracker.experiment_id

    def open(self, num_trials: int) -> None:
        """Find or create the parent run."""
        trials = self._config.trials
        objective = objective_of(trials, trials.trial.task)
        axes = [name for name in trials.axes if name not in _COLUMNS]
        self.run_id = self._tracker.sweep_run(
            self._experiment.sweep.fingerprint,
            name=self._config.report.title,
            params={"algorithm": trials.algorithm, "num_trials": num_trials},
            config_yaml=config_to_yaml(self._config),
            tags={**self._source(), _NOTE: self._describe()},
            datasets=list(self._data.values()),
        )
        self._tracker.show_first(
            RunsView(
                metric=f"best/{objective.metric}",
                curve=objective.metric,
                mode=objective.mode,
                params=(*_COLUMNS, *axes),
            )
        )

    def open_trial(self, trial: Trial, address: Address) -> str:
        """Find or create the run of a trial."""
        if address.fingerprint not in self.trial_ids:
            self._names[address.fingerprint] = self.name(trial)
            self._objectives[address.fingerprint] = objective_of(self._config.trials, trial.task).metric
            self.trial_ids[address.fingerprint] = self._tracker.trial_run(
                self.run_id,
                address.fingerprint,
                name=self.name(trial),
                params=asdict(trial),
                tags=self._source(),
                datasets=[self._data[trial.features]],
            )
        return self.trial_ids[address.fingerprint]

    def log_epoch(self, key: str, result: EpochResult) -> None:
        """Log an epoch of a trial whose run is open."""
        self._tracker.log_epoch(self.trial_ids[key], self._named(self._objectives[key], result))

    def record(self, trial: Trial, address: Address, result: TrialResult) -> None:
        """Close the run of a trial that is over: complete its epochs, store its model and figures, set its status."""
        if result.best is not None:
            self._measure_baseline(trial)
        run_id, content = self.open_trial(trial, address), file_sha256(address.directory / TRIAL_RESULT)[:16]
        if self._tracker.is_recorded(run_id, content):
            return
        metric = self._objectives[address.fingerprint]
        self._tracker.log_history(run_id, [self._named(metric, epoch) for epoch in result.history])
        # Without an error the text is empty, which replaces that of an earlier try that failed.
        tags = {"vidflow.status": result.status, _NOTE: f"**Failed**: {result.error}" if result.error else ""}
        if result.best is None:
            self._tracker.finish(run_id, "FAILED", tags=tags, content=content)
            return
        self._log_confusion(run_id, result)
        columns = model_columns(trial.task)
        model_id = self._tracker.log_model(run_id, code=MODEL_CODE, file=result.directory / BEST, columns=columns)
        self._tracker.finish(
            run_id,
            "FAILED" if result.status == "failed" else "FINISHED",
            metrics={f"best/{metric}": result.best.metrics[metric]},
            step=result.best.epoch,
            tags={**tags, **_baseline_tag(self.baselines[trial.task], metric)},
            model_id=model_id,
            data=self._data[trial.features],
            content=content,
        )

    def finish(self, best: Mapping[TaskName, TrialResult], *, is_complete: bool, plan: bytes = b"") -> None:
        """Close the parent run.

        Args:
            best: Best trial of each task.
            is_complete: Whether no trial has failed.
            plan: The forecast beside what was paid, as JSON; empty without a forecast.
        """
        if plan:
            self._tracker.log_file(self.run_id, plan, "plan.json")
        metrics, tags = {}, {_NOTE: self._describe(best)}
        for task, result in best.items():
            metric, _ = objective_of(self._config.trials, task)
            if result.best is not None and result.status != "failed":
                metrics[f"best/{metric}"] = result.best.metrics[metric]
                tags |= _baseline_tag(self.baselines[task], metric)
        self._tracker.finish(self.run_id, "FINISHED" if is_complete else "FAILED", metrics=metrics, tags=tags)

    def _named(self, metric: str, result: EpochResult) -> EpochResult:
        """Return an epoch with the objective first, as the UI keeps the order; `best/` has the best epoch's alone."""
        first = (f"best/{metric}", metric) if result.is_best else (metric,)
        metrics = {name: result.metrics[metric] for name in first if metric in result.metrics}
        return replace(result, metrics={**metrics, **result.metrics})

    def name(self, trial: Trial) -> str:
        """Return what distinguishes a trial from the others of its sweep."""
        return " ".join(f"{axis}={getattr(trial, axis)}" for axis in self._config.trials.axes) or trial.core

    def _source(self) -> dict[str, str]:
        """Return the tags in which MLflow says what made a run."""
        tags = {"mlflow.source.name": self._experiment.command("sweep"), "mlflow.source.type": "LOCAL"}
        if commit := _commit():
            tags["mlflow.source.git.commit"] = commit
        with suppress(KeyError, OSError):  # a container may have no name for its user
            tags["mlflow.user"] = getpass.getuser()
        return tags

    def _describe(self, best: Mapping[TaskName, TrialResult] | None = None) -> str:
        """Return the description of the parent run as Markdown: what it is, data, best trial, report, commands."""
        lines = [self._best_line(task, result) for task, result in best.items()] if best else ["- Trials are running."]
        if best:
            page = f"[report.html](#{self._page(self.run_id)}/artifacts/report.html)"
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
        link = f"[{self._names[result.key]}](#{self._page(self.trial_ids[result.key])})"
        score = f"`{metric}` {result.best.metrics[metric]:.3f} after epoch {result.best.epoch}{without}"
        return f"- Best trial ({task}): {link}, {score}. Use it: `vidflow predict {result.directory} VIDEO`"

    def _page(self, run_id: str) -> str:
        return f"/experiments/{self.experiment_id}/runs/{run_id}"

    def _measure_baseline(self, trial: Trial) -> None:
        """Measure a task's trivial answer, once because all trials share clips and truth."""
        if trial.task not in self.baselines:
            clips = self._experiment.clips_of(trial.features, trial.feed)
            self.baselines[trial.task] = baseline_metrics(trial.task, clips, self._experiment.config.trials.splits)

    def _log_confusion(self, run_id: str, result: TrialResult) -> None:
        classified = read_classified(result)
        if classified is not None:
            names = self._experiment.finished_shards.class_names
            self._tracker.log_file(run_id, confusion_figure(classified.confusion, names), "confusion.png")


def model_columns(task: TaskName) -> ModelColumns:
    """Return what the model of a task takes and gives."""
    predicts = facts_of(task).predicts
    asks = predicts in ("boxes", "points")
    return ModelColumns(
        inputs={"path": "string", "queries": "any"} if asks else {"path": "string"},
        optional=["queries"],
        outputs={"path": "string", "index": "long", "pts_seconds": "double", predicts: "any"},
    )


def _feature_data(experiment: Experiment, name: str) -> FeatureData:
    """Describe a feature set; where it is not stored, the shards whose frames trials read instead."""
    address = experiment.features[name]
    is_stored = name in experiment.stored_features
    clips = experiment.clips_of(name, "features" if is_stored else "shards")
    return FeatureData(
        name=name,
        identity=address.identity,
        place=str(clips.directory),
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
