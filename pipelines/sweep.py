"""Train temporal modules on cached features as Ray Tune trials, tracked in MLflow: `vidflow sweep CONFIG.yaml`."""

import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict

from pipelines.display import count
from pipelines.entry import run_stage
from pipelines.machine_checks import find_small_cache
from pipelines.plan.record import PLAN, StageCost, compare_with_plan
from pipelines.ray_pool import log
from pipelines.ray_session import check_cluster, ray_session
from pipelines.sweep_runs import SweepRuns
from pipelines.trial_recorder import TrialRecorder
from pipelines.tune_callbacks import RunLogger
from pipelines.tuning import run_trials
from vidflow.config.schema import Trial
from vidflow.config.search import draw_candidates, objective_of
from vidflow.config.tasks import TaskName
from vidflow.errors import ConfigError, DamagedError, FailedTrialsError, VidflowError
from vidflow.records import StageManifest, TrialResult
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import publish_manifest
from vidflow.stages.references import STARTED
from vidflow.store.features import FeatureReader
from vidflow.store.layout import list_sizes, publish_json, read_json
from vidflow.training.snapshot import load_result, read_snapshot, write_result

STOPPED = "stopped.json"


def main(experiment: Experiment) -> None:
    """Run the trials that have no result yet.

    Raises:
        FailedTrialsError: If trials failed; the others are committed.
    """
    config = experiment.config
    with experiment.exclusive():
        experiment.check_features()
        for problem in find_small_cache(experiment):  # again, as now the sizes are known
            raise ConfigError(problem)
        with ray_session(config):
            check_cluster(config, ["sweep"])
            Sweep(experiment).run()


class Sweep:
    """One sweep: its trials by key, and its parent run in MLflow."""

    def __init__(self, experiment: Experiment) -> None:
        """List the trials known so far."""
        self._experiment = experiment
        self._config, self._features, self._address = experiment.config, experiment.features, experiment.sweep
        before = experiment.manifest(self._address)
        self._runs = SweepRuns(experiment, before.details["baselines"] if before is not None else {})
        self._trials: dict[str, Trial] = {}
        for trial in self._known_trials():
            self._trials[experiment.trial(trial).fingerprint] = trial

    def run(self) -> None:
        """Run the trials without a result, record every trial, and commit the sweep.

        Raises:
            VidflowError: If trials did not end, or all failed; what is done is kept.
            FailedTrialsError: If trials failed; the others are committed.
        """
        started = time.monotonic()
        with self._runs:
            self._runs.open(len(self._trials))
            with TrialRecorder(self._runs, self._end_stopped) as recorder:
                errors = self._train(recorder)
                self._end(recorder, [key for key in self._trials if key not in errors])
            self._check_ended(errors)
            self._commit([self._result(trial) for trial in self._trials.values()], time.monotonic() - started)

    def _train(self, recorder: TrialRecorder) -> dict[str, str]:
        """Run the trials without a result, and return the errors of those that failed, by key."""
        for key in self._trials:
            self._end_stopped(key)
        finished = self._finished()
        self._end(recorder, finished)  # what a kill of an earlier run has left open
        waiting = [trial for key, trial in self._trials.items() if key not in finished]
        if finished:
            log.info("sweep: %d of %d trials are there already", len(finished), len(self._trials))
        if not waiting and not self._is_searching(finished):
            return {}
        # Checked now, so that a damaged file gives one message, not many failed trials.
        for feature_set in self._experiment.stored_features.values():
            FeatureReader(feature_set.directory).check_files()
        if frames := [trial for trial in waiting if trial.feed == "shards"]:
            self._experiment.clips_of(frames[0].features, "shards").check_files()
        logger = RunLogger(self._config, self._features, recorder, self._note_started)
        run_trials(
            self._config,
            waiting,
            list(finished.values()),
            self._features,
            storage=self._address.directory / "tune",
            callback=logger,
            name_of=self._runs.name,
            note_stopped=self._note_stopped,
        )
        return logger.errors

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

    def _end(self, recorder: TrialRecorder, keys: Iterable[str]) -> None:
        """Close the runs of trials, each if it is over or the scheduler has stopped it."""
        for key in keys:
            recorder.end(self._trials[key], self._experiment.trial(self._trials[key]))
        recorder.drain()

    def _end_stopped(self, key: str) -> None:
        """Mark a trial as over if the scheduler has stopped it, unless it is completed or marked already."""
        epoch = self._stopped().get(key)
        if epoch is None:
            return
        directory = self._experiment.trial(self._trials[key]).directory
        result = load_result(directory)
        if result is not None and result.status in ("completed", "stopped"):
            return
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
            example = self._trials[min(open_ended)]
            raise VidflowError(
                f"{len(open_ended)} of {len(self._trials)} trials ended early, such as {self._runs.name(example)}; "
                "nothing is committed, and the same command trains on"
            )

    def _note_started(self, trial: Trial, address: Address) -> None:
        """Record that a trial was started, as a search chooses trials only while it runs."""
        if address.fingerprint not in self._trials:
            self._trials[address.fingerprint] = trial
            started = {"trials": [asdict(known) for known in self._trials.values()]}
            publish_json(self._address.directory / STARTED, started)

    def _result(self, trial: Trial) -> TrialResult:
        result = load_result(self._experiment.trial(trial).directory)
        assert result is not None, "every trial has a result or an error, which is a result too"
        return result

    def _score(self, result: TrialResult) -> float:
        """Return the objective with the sign for which more is better; a trial that failed is behind all others."""
        metric, mode = objective_of(self._config.trials, self._trials[result.key].task)
        if result.best is None or result.status == "failed":
            return -math.inf
        return result.best.metrics[metric] * (1 if mode == "max" else -1)

    def _commit(self, results: Sequence[TrialResult], wall_seconds: float) -> None:
        failed = [result for result in results if result.status == "failed"]
        seconds = sum(epoch.seconds for result in results for epoch in result.history)
        worker_seconds = seconds * self._config.resources.trials.workers_per_trial
        num_bytes = sum(sum(list_sizes(result.directory).values()) for result in results)
        taken = StageCost(seconds=worker_seconds, num_bytes=num_bytes)
        plan = {} if failed else compare_with_plan(self._experiment, taken)
        self._runs.finish(
            {task: self._best(task, results) for task in self._tasks()},
            is_complete=not failed,
            plan=json.dumps(plan, indent=1).encode() if plan else b"",
        )
        if len(failed) == len(results):
            raise VidflowError(f"{self._describe_failed(failed, results)}; the same command tries again")
        if plan:
            publish_json(self._address.directory / PLAN, plan)
        ids = self._runs.ids()
        manifest = StageManifest(
            stage="sweep",
            fingerprint=self._address.fingerprint,
            settings=self._address.settings,
            num_files=len(results),
            num_bytes=num_bytes,
            worker_seconds=worker_seconds,
            wall_seconds=wall_seconds,
            details={
                **ids.details([result.key for result in results]),
                "trials": [result.key for result in results],
                "failed": [result.key for result in failed],
                "baselines": self._runs.baselines,
            },
        )
        publish_manifest(self._address, manifest)
        self._experiment.published("sweep")
        log.info(
            "sweep: %s%s in %.0f s -> %s; %s%s",
            f"{len(results) - len(failed)} of " if failed else "",
            count(len(results), "trial"),
            wall_seconds,
            f"MLflow run {ids.run_id}" if ids.run_id else "no MLflow run yet",
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
            f"{len(failed)} of {len(results)} trials failed, the first, {self._runs.name(self._trials[first.key])}, "
            f"with: {first.error or 'no message'}"
        )

    def _describe_best(self, results: Sequence[TrialResult]) -> Iterator[str]:
        """Yield a line about the best trial of each task, unless all its trials failed."""
        for task in self._tasks():
            best = self._best(task, results)
            metric, _ = objective_of(self._config.trials, task)
            if best.best is not None and best.status != "failed":
                yield f"best {self._runs.name(self._trials[best.key])}: {metric} {best.best.metrics[metric]:.3f}"

    def _tasks(self) -> list[TaskName]:
        return list(dict.fromkeys(trial.task for trial in self._trials.values()))

    def _best(self, task: TaskName, results: Sequence[TrialResult]) -> TrialResult:
        return max((result for result in results if self._trials[result.key].task == task), key=self._score)


if __name__ == "__main__":
    run_stage("sweep", main)
