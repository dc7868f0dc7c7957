"""What happens in the driver as trials report: runs are written, the table of trials is kept up to date."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from pipelines.placement import Placement
from pipelines.room import RoomWatch
from pipelines.trial_recorder import TrialRecorder
from pipelines.trial_table import TrialRow, TrialTable
from vidflow.config.schema import Config, Trial
from vidflow.config.search import apply_overrides, objective_of
from vidflow.records import EpochResult, TrialResult
from vidflow.stages.address import Address, locate_trial
from vidflow.training.trial import load_result

FAILURE = "failure"
"""What a trial reports in place of an epoch if it cannot go on; the message for the user."""


def trial_of(config: Config, settings: Mapping[str, Any]) -> Trial:
    """Return the trial of Tune's settings, which hold either a complete trial or the values of the axes."""
    return Trial(**settings["trial"]) if "trial" in settings else apply_overrides(config.trials.trial, settings)


class RunLogger(tune.Callback):
    """Passes on what trials report; it runs in the driver, which is the only writer to MLflow."""

    def __init__(
        self,
        config: Config,
        features: dict[str, Address],
        recorder: TrialRecorder,
        note_started: Callable[[Trial, Address], None],
    ) -> None:
        """Keep what is needed to find a trial's key.

        Args:
            config: The experiment.
            features: Address of each feature set.
            recorder: Writes the runs.
            note_started: Called with each trial that starts.
        """
        self._config, self._features = config, features
        self._recorder, self._note_started = recorder, note_started
        self.errors: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out connections; Tune pickles its callbacks for a restore that vidflow never uses."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Open the run of a starting trial."""
        spec, address = self._address(trial)
        self._note_started(spec, address)
        self._recorder.start(spec, address)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Log one epoch, or keep the message of a failure."""
        if FAILURE in result:
            self.errors[self.key_of(trial)] = result[FAILURE]
            return
        metrics = {
            name: float(value) for name, value in result.items() if "/" in name and not name.startswith("config/")
        }
        epoch = EpochResult(
            epoch=result["epoch"], metrics=metrics, seconds=result["seconds"], is_best=result["is_best"]
        )
        self._recorder.log_epoch(self._address(trial)[1], epoch)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Close the run of a trial that has completed, was stopped or has reported a failure."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Keep the error message of a trial that has failed and is not tried again."""
        self.errors[self.key_of(trial)] = f"{_problem(trial)}; traceback: {_error_file(trial)}"
        self._end(trial)

    def key_of(self, trial: TuneTrial) -> str:
        """Return the key of Tune's trial."""
        return self._address(trial)[1].fingerprint

    def result_of(self, trial: TuneTrial) -> TrialResult | None:
        """Return the result of a trial that is over."""
        return load_result(self._address(trial)[1].directory)

    def _end(self, trial: TuneTrial) -> None:
        spec, address = self._address(trial)
        error = self.errors.get(address.fingerprint)
        if error is None:
            self._recorder.end(spec, address)
        else:
            self._recorder.fail(spec, address, error)

    def _address(self, trial: TuneTrial) -> tuple[Trial, Address]:
        spec = trial_of(self._config, trial.config)
        return spec, locate_trial(self._config, spec, self._features[spec.features])


class ShownTrials(tune.Callback):
    """Keeps the table of trials up to date; Tune calls it after the logger."""

    def __init__(self, config: Config, logger: RunLogger, name_of: Callable[[Trial], str], *, num_new: int) -> None:
        """Start with no trial.

        Args:
            config: The experiment.
            logger: Knows the keys and the errors of trials.
            name_of: What tells a trial from the others.
            num_new: How many trials there will be.
        """
        self._config, self._logger, self._name_of = config, logger, name_of
        self.table = TrialTable(total=num_new)
        self.stopped: set[str] = set()
        """Tune's names of the trials that the scheduler has stopped."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out everything, as `RunLogger` does."""
        return {}

    def add(self, trial: Trial, key: str) -> None:
        """Add a row, unless the trial has one."""
        objective = objective_of(self._config.trials, trial.task)
        self.table.rows.setdefault(key, TrialRow(self._name_of(trial), trial.epochs, objective))

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Show a trial as running."""
        key = self._logger.key_of(trial)
        self.add(trial_of(self._config, trial.config), key)
        self.table.start(key)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Show an epoch."""
        if FAILURE not in result:
            key = self._logger.key_of(trial)
            metric, _ = self.table.rows[key].objective
            self.table.epoch(key, result["epoch"], result[metric], is_best=result["is_best"])

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Show that a trial is tried again."""
        self.table.retry(self._logger.key_of(trial), _problem(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Show that a trial has failed."""
        key = self._logger.key_of(trial)
        self.table.end(key, "failed", problem=self._logger.errors[key])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Show how a trial has ended; nothing if the command is being interrupted, which also ends trials."""
        key = self._logger.key_of(trial)
        if key in self._logger.errors:
            self.table.end(key, "failed", problem=self._logger.errors[key])
        elif trial.trial_id in self.stopped:
            self.table.end(key, "stopped")
        elif (result := self._logger.result_of(trial)) is not None and result.best is not None:
            self.table.end(key, "done", best=result.best.metrics[self.table.rows[key].objective[0]])


class RoomCallback(tune.Callback):
    """Ends a sweep that waits in vain: the machines that held a trial were lost, and no other has come."""

    def __init__(self, placement: Placement) -> None:
        """Start the clock.

        Args:
            placement: What each trial takes.
        """
        self._watch = RoomWatch("sweep", placement)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:  # noqa: ARG002
        """Look, while no trial runs.

        Raises:
            VidflowError: If for `wait_seconds` no machine could hold a trial.
        """
        if any(trial.status == TuneTrial.RUNNING for trial in trials):
            self._watch.note_worker()
        else:
            self._watch.look()


def _problem(trial: TuneTrial) -> str:
    """Return what went wrong in the last attempt at a trial, on one line."""
    latest = Path(trial.error_file).read_text().rpartition("Failure #")[2].strip().splitlines()[1:]
    if latest[0].startswith("The actor"):
        return "its worker died (killed, or out of memory)"
    return latest[-1].strip()


def _error_file(trial: TuneTrial) -> Path:
    """Return the file with the tracebacks of all attempts at a trial, which Tune copies beside its results."""
    assert trial.storage is not None
    return Path(trial.storage.trial_fs_path, Path(trial.error_file).name)
