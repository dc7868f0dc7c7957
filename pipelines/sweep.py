"""Train temporal modules on cached features as Ray Tune trials, tracked in MLflow: `vidflow sweep CONFIG.yaml`."""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from pipelines.entry import run_stage
from pipelines.plan.record import PLAN, StageCost, compare_with_plan
from pipelines.ray_pool import check_cluster, log, ray_session
from pipelines.tuning import RunLogger, run_trials
from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Trial
from vidflow.config.search import draw_candidates, objective_of
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import DamagedError, FailedTrialsError, VidflowError
from vidflow.records import StageManifest, TrialResult
from vidflow.report.figures import confusion_figure
from vidflow.report.results import read_classified
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import publish_manifest
from vidflow.store.features import FeatureReader
from vidflow.store.layout import publish_json, read_json
from vidflow.tracking import Tracker, explain_failures
from vidflow.training.baselines import baseline_metrics
from vidflow.training.snapshot import BEST, load_result, read_snapshot, write_failure, write_result

STARTED = "started.json"
STOPPED = "stopped.json"
MODEL_SCRIPT = Path(__file__).with_name("mlflow_model.py")
MODEL_REQUIREMENTS = [f"{name}=={version(name)}" for name in ("av", "mlflow", "safetensors", "timm", "torch")]


def main(experiment: Experiment) -> None:
    """Run the trials that have no result yet.

    Raises:
        FailedTrialsError: If trials failed; the others are committed.
    """
    config = experiment.config
    with experiment.exclusive():
        experiment.check_features()
        with explain_failures(store_uri(config)), ray_session(config):
            check_cluster(config, ["sweep"])
            Sweep(experiment).run()


class Sweep:
    """One sweep: its trials by key, and its parent run in MLflow."""

    def __init__(self, experiment: Experiment) -> None:
        """Open the tracking store and list the trials known so far."""
        self._experiment = experiment
        self._config, self._features, self._address = experiment.config, experiment.features, experiment.sweep
        self._tracker = Tracker(store_uri(self._config), self._config.tracking.experiment)
        self._trials: dict[str, Trial] = {}
        before = experiment.manifest(self._address)
        self._baselines: dict[str, dict[str, float]] = before.details["baselines"] if before is not None else {}
        for trial in self._known_trials():
            self._trials[experiment.trial(trial).fingerprint] = trial

    def run(self) -> None:
        """Run the trials without a result, log every trial, and commit the sweep.

        Raises:
            VidflowError: If trials did not end; the results of the others are kept.
            FailedTrialsError: If trials failed; the others are committed.
        """
        started = time.monotonic()
        self._run_id = self._tracker.sweep_run(
            self._address.fingerprint,
            name=self._config.report.title,
            params={"algorithm": self._config.trials.algorithm, "num_trials": len(self._trials)},
            config_yaml=config_to_yaml(self._config),
            datasets=self._datasets(self._features),
        )
        self._end_stopped()  # trials that the scheduler stopped before an earlier run was killed
        finished = self._finished()
        waiting = [trial for key, trial in self._trials.items() if key not in finished]
        errors: dict[str, str] = {}
        if finished:
            log.info("sweep: %d of %d trials are there already", len(finished), len(self._trials))
        if waiting or self._is_searching(finished):
            for feature_set in self._features.values():
                # Checked now, so that a damaged file gives one message, not many failed trials.
                FeatureReader(feature_set.directory).check_files()
            logger = RunLogger(self._config, self._features, self._tracker, self._open_run)
            run_trials(
                self._config,
                waiting,
                list(finished.values()),
                self._features,
                storage=self._address.directory / "tune",
                callback=logger,
                name_of=self._name,
                note_stopped=self._note_stopped,
            )
            errors = logger.errors
            self._end_stopped()
            self._check_ended(errors)
        results = [self._record(trial, errors.get(key, "")) for key, trial in self._trials.items()]
        self._commit(results, time.monotonic() - started)

    def _is_searching(self, finished: dict[str, TrialResult]) -> bool:
        trials = self._config.trials
        return trials.algorithm == "optuna" and len(finished) < trials.num_samples

    def _known_trials(self) -> list[Trial]:
        """Return the candidates; for a search, which chooses them as results come in, those started so far."""
        if self._config.trials.algorithm != "optuna":
            return draw_candidates(self._config)[0]
        started = read_json(self._address.directory / STARTED) or {"trials": []}
        return [Trial(**values) for values in started["trials"]]

    def _finished(self) -> dict[str, TrialResult]:
        """Return the trials that are over; not those that another sweep stopped, as this one may train them further."""
        results = {key: load_result(self._experiment.trial(trial).directory) for key, trial in self._trials.items()}
        stopped = self._stopped()
        return {
            key: result
            for key, result in results.items()
            if result is not None
            and (
                result.status == "completed"
                or (result.status == "stopped" and len(result.history) >= stopped.get(key, math.inf))
            )
        }

    def _stopped(self) -> dict[str, int]:
        """Return key -> epoch of the trials that this sweep's scheduler has stopped."""
        stopped: dict[str, int] = (read_json(self._address.directory / STOPPED) or {}).get("epochs", {})
        return stopped

    def _note_stopped(self, key: str, epoch: int) -> None:
        """Record after which epoch this sweep's scheduler stopped a trial."""
        publish_json(self._address.directory / STOPPED, {"epochs": {**self._stopped(), key: epoch}})

    def _end_stopped(self) -> None:
        """Mark the trials that the scheduler has stopped as over, unless they are completed or marked already."""
        for key, epoch in self._stopped().items():
            # A key is unknown if the list of started trials was lost.
            if key not in self._trials:
                continue
            directory = self._experiment.trial(self._trials[key]).directory
            result = load_result(directory)
            if result is not None and result.status in ("completed", "stopped"):
                continue
            try:
                snapshot = read_snapshot(directory)
                # It has fewer epochs if its folder was lost after the stop and it is now trained again.
                if snapshot is not None and len(snapshot.history) >= epoch:
                    write_result(directory, "stopped")
            except DamagedError as error:
                log.warning("%s", error)

    def _check_ended(self, errors: Collection[str]) -> None:
        """Refuse to continue if a trial has neither a result nor an error, because then it did not end.

        Raises:
            VidflowError: If there is such a trial.
        """
        open_ended = [key for key in self._trials.keys() - self._finished().keys() if key not in errors]
        if open_ended:
            raise VidflowError(
                f"{len(open_ended)} of {len(self._trials)} trials ended early, such as "
                f"{self._name(self._trials[min(open_ended)])}; nothing is committed, and the same command trains on"
            )

    def _open_run(self, trial: Trial, address: Address) -> str:
        """Find or create the run of a trial, and record that it was started."""
        if address.fingerprint not in self._trials:
            self._trials[address.fingerprint] = trial
            started = {"trials": [asdict(known) for known in self._trials.values()]}
            publish_json(self._address.directory / STARTED, started)
        return self._tracker.trial_run(
            self._run_id,
            address.fingerprint,
            name=self._name(trial),
            params=asdict(trial),
            datasets=self._datasets({trial.features: self._features[trial.features]}),
        )

    def _name(self, trial: Trial) -> str:
        return " ".join(f"{axis}={getattr(trial, axis)}" for axis in self._config.trials.axes) or trial.core

    def _datasets(self, features: dict[str, Address]) -> dict[str, tuple[str, str]]:
        """Return name -> (identity, folder) of the feature sets, for lineage."""
        return {name: (address.identity, str(address.directory)) for name, address in features.items()}

    def _record(self, trial: Trial, error: str) -> TrialResult:
        """Update a trial's run from the trial's folder, because the run may lack the last epochs."""
        address = self._experiment.trial(trial)
        if error:
            result = write_failure(address.directory, key=address.fingerprint, settings=asdict(trial), error=error)
        else:
            known = load_result(address.directory)
            assert known is not None
            result = known
        run_id = self._open_run(trial, address)
        self._tracker.log_history(run_id, result.history)
        if result.best is not None:
            self._tracker.log_file(run_id, result.directory / BEST, f"checkpoint/{BEST}")
            self._tracker.log_model(
                run_id,
                script=MODEL_SCRIPT,
                file=result.directory / BEST,
                requirements=MODEL_REQUIREMENTS,
                settings={"weights": None},
            )
            self._log_confusion(run_id, result)
        baseline = self._baseline(trial) if result.best is not None else {}
        summary = {f"baseline/{name}": value for name, value in baseline.items()}
        self._tracker.finish(run_id, "FAILED" if result.status == "failed" else "FINISHED", summary=summary)
        return result

    def _baseline(self, trial: Trial) -> dict[str, float]:
        """Return the metrics of a task's trivial answer, measured once because all trials share clips and truth."""
        if trial.task not in self._baselines:
            reader = FeatureReader(self._features[trial.features].directory)
            self._baselines[trial.task] = baseline_metrics(trial.task, reader, self._config.trials.splits)
        return self._baselines[trial.task]

    def _log_confusion(self, run_id: str, result: TrialResult) -> None:
        classified = read_classified(result)
        if classified is not None:
            names = FeatureReader(self._features[str(result.settings["features"])].directory).metadata["class_names"]
            self._tracker.log_file(run_id, confusion_figure(classified.confusion, names), "confusion.png")

    def _score(self, result: TrialResult) -> float:
        """Return the objective with the sign for which more is better."""
        metric, mode = objective_of(self._config.trials, self._trials[result.key].task)
        if result.best is None:
            return -math.inf
        return result.best.metrics[metric] * (1 if mode == "max" else -1)

    def _commit(self, results: Sequence[TrialResult], wall_seconds: float) -> None:
        failed = [result for result in results if result.status == "failed"]
        worker_seconds = sum(epoch.seconds for result in results for epoch in result.history)
        num_bytes = sum(file.stat().st_size for result in results for file in result.directory.iterdir())
        taken = StageCost(seconds=worker_seconds, num_bytes=num_bytes)
        plan = {} if failed else compare_with_plan(self._experiment, taken)
        self._tracker.finish(self._run_id, "FAILED" if failed else "FINISHED", summary=plan)
        if len(failed) == len(results):
            raise FailedTrialsError(f"{self._describe_failed(failed, results)}; the same command tries again")
        if plan:
            publish_json(self._address.directory / PLAN, plan)
        manifest = StageManifest(
            stage="sweep",
            fingerprint=self._address.fingerprint,
            num_files=len(results),
            num_bytes=num_bytes,
            worker_seconds=worker_seconds,
            wall_seconds=wall_seconds,
            details={
                "run_id": self._run_id,
                "trials": [result.key for result in results],
                "failed": [result.key for result in failed],
                "baselines": self._baselines,
            },
        )
        publish_manifest(self._address, manifest)
        self._experiment.published("sweep")
        log.info(
            "sweep: %s trials in %.0f s -> MLflow run %s; %s%s",
            f"{len(results) - len(failed)} of {len(results)}" if failed else len(results),
            wall_seconds,
            self._run_id,
            "; ".join(self._describe_best(results)),
            self._experiment.then("report"),
        )
        if failed:
            raise FailedTrialsError(
                f"{self._describe_failed(failed, results)}; the others are kept, and the same command tries these again"
            )

    def _describe_failed(self, failed: Sequence[TrialResult], results: Sequence[TrialResult]) -> str:
        first = failed[0]
        return (
            f"{len(failed)} of {len(results)} trials failed, the first, {self._name(self._trials[first.key])}, "
            f"with: {first.error or 'no message'}"
        )

    def _describe_best(self, results: Sequence[TrialResult]) -> Iterator[str]:
        """Yield a line about the best trial of each task."""
        for task in dict.fromkeys(trial.task for trial in self._trials.values()):
            best = max((result for result in results if self._trials[result.key].task == task), key=self._score)
            metric, _ = objective_of(self._config.trials, task)
            yield f"best {self._name(self._trials[best.key])}: {metric} {abs(self._score(best)):.3f}"


if __name__ == "__main__":
    run_stage("sweep", main)
