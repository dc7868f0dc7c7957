"""Ray Tune: run candidates as trials and pass on their results.

Tune only schedules. The state of each trial is in the trial's own folder, under its own key. So a killed sweep is
resumed by starting the trials that have no result; each resumes from its own snapshot.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from pipelines.display import shown
from pipelines.interrupts import raise_if_interrupted
from pipelines.placement import Placement, usable_device
from pipelines.ray_pool import log
from pipelines.ray_session import count_workers, place
from pipelines.room import wait_for_room
from pipelines.shared_root import Proof, check_here, session_proof
from pipelines.trial_ranks import train_together
from pipelines.tune_callbacks import FAILURE, RoomCallback, RunLogger, ShownTrials, trial_of
from pipelines.usage import Usage
from vidflow.allocator import keep_freed_memory
from vidflow.config.roots import bound_cache, root_path
from vidflow.config.schema import AxisValue, Config, Range, Trial
from vidflow.config.search import draw_candidates, objective_of
from vidflow.errors import VidflowError
from vidflow.records import EpochResult, TrialResult
from vidflow.stages.address import Address, locate_trial
from vidflow.stages.trial_clips import open_clips
from vidflow.store.initial_weights import read_initial
from vidflow.training.encoding import Encoding
from vidflow.training.ranks import Ranks
from vidflow.training.trial import run_trial


def run_trials(
    config: Config,
    candidates: Sequence[Trial],
    finished: Sequence[TrialResult],
    features: dict[str, Address],
    *,
    storage: Path,
    callback: RunLogger,
    name_of: Callable[[Trial], str],
    note_stopped: Callable[[str, int], None],
) -> None:
    """Run trials under Tune until each has finished, was stopped, or has failed `resources.trials.attempts` times.

    Args:
        config: The experiment.
        candidates: Trials still to run; for `optuna` those that were running when the last driver died.
        finished: Results so far, from which `optuna` learns.
        features: Address of each feature set.
        storage: Folder for Tune's own files.
        callback: Passes on the results.
        name_of: What tells a trial from the others, for the display.
        note_stopped: Called with the key of each trial that the scheduler stops, and the epoch after which it stops;
            nothing else stops a trial.

    Raises:
        KeyboardInterrupt: If the command was interrupted.
        VidflowError: If the search ended too early, or the runs cannot be stored.
        OSError: If a disk is full.
    """
    # Without this, Tune takes Ctrl-C as the normal end of the search and returns without an error.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # else a trial that reports its failure ends the sweep
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints a banner for every value of `verbose`
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    trials, placement = config.trials, place(config, "trials")
    searching = trials.algorithm == "optuna"
    # Only a search or a scheduler needs the metric, and then all trials have one task (see `draw_candidates`).
    chooses = searching or trials.scheduler != "fifo"
    metric, mode = objective_of(trials, trials.trial.task) if chooses else (None, None)
    space = None if searching else {"trial": tune.grid_search([asdict(candidate) for candidate in candidates])}

    num_samples = max(1, trials.num_samples - len(finished)) if searching else 1
    view = ShownTrials(config, callback, name_of, num_new=num_samples if searching else len(candidates))
    for candidate in () if searching else candidates:
        view.add(candidate, locate_trial(config, candidate, features[candidate.features]).fingerprint)

    def note(trial: TuneTrial, epoch: int) -> None:
        if epoch < trial_of(config, trial.config).epochs:  # else it is complete, which Tune also calls stopping
            note_stopped(callback.key_of(trial), epoch)
            view.stopped.add(trial.trial_id)

    wait_for_room("sweep", placement)
    log.info("sweep: up to %d trials at a time, each %s", count_workers(placement), placement.words)
    work = Work(config, features, placement, session_proof())
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, work=work), _taken(placement)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            num_samples=num_samples,
            search_alg=_optuna(config, candidates, finished) if searching else None,
            scheduler=_scheduler(config, note),
            max_concurrent_trials=placement.workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(storage.parent),
            name=storage.name,
            verbose=0,
            callbacks=[callback, view, RoomCallback(placement)],  # in this order
            failure_config=tune.FailureConfig(max_failures=placement.attempts - 1),
        ),
    )
    try:
        with shown(view.table):
            ran = tuner.fit()
    except tune.TuneError as error:
        if (ours := _error_behind(error)) is not None:
            raise ours  # noqa: B904 - Tune's error holds only its traceback, as text
        # The error's message is the traceback of an error in the driver; its last line says what went wrong.
        raise VidflowError(
            f"the search was interrupted: {str(error).strip().splitlines()[-1]}; what is committed stays, and the same "
            "command resumes from here"
        ) from error
    raise_if_interrupted()
    if len(ran) < num_samples:
        raise VidflowError(f"the search ended after {len(ran)} of {num_samples} trials; the same command continues it")


def _error_behind(error: BaseException) -> VidflowError | OSError | None:
    """Return the error for the user that a callback raised, because of which Tune raised another; None without one."""
    behind = error.__context__
    while behind is not None and not isinstance(behind, VidflowError | OSError):
        behind = behind.__context__
    return behind


class StoppingScheduler(AsyncHyperBandScheduler):
    """ASHA that reports which trials it stops; Tune gives the same status to trials that end for other reasons."""

    def __init__(self, note_stopped: Callable[[TuneTrial, int], None], **settings: Any) -> None:
        """Keep the function to call.

        Args:
            note_stopped: Called with a trial and its epoch at once when it is stopped, as the command may be killed.
            settings: Settings of ASHA.
        """
        super().__init__(**settings)
        self._note_stopped = note_stopped

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the function, as `RunLogger` does: Tune pickles it for a restore that vidflow never uses."""
        return {**self.__dict__, "_note_stopped": None}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Decide on a trial after an epoch."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            self._note_stopped(trial, result["epoch"])
        return decision


class Work(NamedTuple):
    """What all trials of a sweep get.

    Attributes:
        config: The experiment.
        features: Address of each feature set.
        placement: What each trial takes.
        proof: What a node must find under the root; None on a single machine.
    """

    config: Config
    features: dict[str, Address]
    placement: Placement
    proof: Proof | None


def train(settings: dict[str, Any], *, work: Work) -> None:
    """Train one trial and report every epoch to Tune, or the message of a failure that another try cannot change."""
    trial, placement = trial_of(work.config, settings), work.placement
    together = placement.processes > 1
    try:
        for result in train_together(placement, _results, trial, work) if together else _results(trial, work):
            tune.report({"epoch": result.epoch, "seconds": result.seconds, "is_best": result.is_best, **result.metrics})
    except VidflowError as error:
        tune.report({FAILURE: str(error)})


def _taken(placement: Placement) -> tune.PlacementGroupFactory:
    """Return what a trial takes: a bundle for each process, and nothing for the one that starts several."""
    each = {"CPU": placement.num_cpus, "GPU": placement.num_gpus}
    return tune.PlacementGroupFactory([each] if placement.processes == 1 else [{}, *[each] * placement.processes])


def _results(trial: Trial, work: Work) -> Iterator[EpochResult]:
    check_here(work.proof)
    config, features, placement = work.config, work.features, work.placement
    keep_freed_memory()
    bound_cache(config)
    torch.set_num_threads(max(1, int(placement.num_cpus)))
    address = locate_trial(config, trial, features[trial.features])
    device = torch.device(usable_device(placement))
    usage = Usage(device)
    results = run_trial(
        trial,
        open_clips(root_path(config), features[trial.features], trial.feed),
        directory=address.directory,
        key=address.fingerprint,
        objective=objective_of(config.trials, trial.task),
        names=config.trials.splits,
        device=device,
        encoding=Encoding.of(config, trial),
        initial=None if trial.init_from is None else read_initial(config, trial.init_from),
        ranks=Ranks.current(),
    )
    for result in results:
        yield replace(result, metrics={**result.metrics, **usage.read()})


def _scheduler(config: Config, note_stopped: Callable[[TuneTrial, int], None]) -> TrialScheduler:
    trials = config.trials
    if trials.scheduler == "fifo":
        return FIFOScheduler()
    longest = max(trial.epochs for trial in draw_candidates(config)[0])
    return StoppingScheduler(
        note_stopped, time_attr="epoch", grace_period=min(trials.asha_grace_epochs, longest), max_t=longest
    )


def _optuna(config: Config, started: Sequence[Trial], finished: Sequence[TrialResult]) -> OptunaSearch:
    trials = config.trials
    metric, mode = objective_of(trials, trials.trial.task)
    search = OptunaSearch(
        space={name: _distribution(axis) for name, axis in trials.axes.items()},
        metric=metric,
        mode=mode,
        seed=trials.seed,
        points_to_evaluate=[{name: getattr(trial, name) for name in trials.axes} for trial in started] or None,
    )
    for result in finished:
        if result.best is not None:
            point = {name: result.settings[name] for name in trials.axes}
            search.add_evaluated_point(point, result.best.metrics[metric])
    return search


def _distribution(axis: list[AxisValue] | Range) -> BaseDistribution:
    return (
        FloatDistribution(axis.low, axis.high, log=axis.log)
        if isinstance(axis, Range)
        else CategoricalDistribution(axis)
    )
