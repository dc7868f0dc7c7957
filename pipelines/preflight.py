"""Find everything that is wrong with an experiment before anything starts: one list of checks for all commands."""

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipelines import machine_checks, progress
from pipelines.initial_weights import find_unfit_weights
from pipelines.model_checks import check_models
from vidflow.config.cross_checks import writing_problem
from vidflow.config.load import Draft
from vidflow.config.schema import STAGES, Config
from vidflow.config.search import list_read_as_stored
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import DamagedError, VidflowError
from vidflow.models.weights import check_weights
from vidflow.stages.experiment import Experiment
from vidflow.stages.wanted_rows import check_rows

log = logging.getLogger("vidflow")


class Flight(NamedTuple):
    """What is about to start.

    Attributes:
        draft: The settings, as far as they are valid.
        experiment: The experiment of these settings.
        steps: The stages that are to do, or the one tool.
        show: Whether only `--print` was asked for.
    """

    draft: Draft
    experiment: Experiment
    steps: tuple[str, ...]
    show: bool


class Check(NamedTuple):
    """One check.

    Attributes:
        steps: The stages and tools that need it.
        reads: The settings that it reads; it is left out if one of them is not valid.
        find: Returns the problems, each beginning with the key of a setting, or raises them.
    """

    steps: frozenset[str]
    reads: tuple[str, ...]
    find: Callable[[Flight], Iterable[str]]


def find_problems(flight: Flight) -> list[str]:
    """Return the problems of all kinds: those of the settings, then those that the checks find."""
    problems = list(flight.draft.problems)
    for check in CHECKS:
        if check.steps.intersection(flight.steps) and all(map(flight.draft.is_sure, check.reads)):
            try:
                problems += check.find(flight)
            except DamagedError:
                raise
            except VidflowError as error:
                problems += str(error).splitlines()
    return list(dict.fromkeys(problems))


def list_steps(command: str, draft: Draft, experiment: Experiment) -> tuple[str, ...]:
    """Return the stages of a command that are to do; all of them while that is not known. A tool is a step itself."""
    if command == "plan" and draft.config.evaluate.models:
        return ()  # the points of an evaluation are counted, not measured
    stages = STAGES if command == "run" else (command,)
    if draft.problems or command not in (*STAGES, "run"):
        return stages
    try:
        return tuple(stage for stage in stages if progress.finished(experiment, stage) is None)
    except DamagedError:
        raise
    except VidflowError:  # a check finds it again
        return stages


def _check_root(flight: Flight) -> Iterable[str]:
    problem = writing_problem(flight.draft.config)
    return [] if problem is None else [problem]


def _check_weights(flight: Flight) -> Iterable[str]:
    encoder = flight.draft.config.encoder
    if encoder.family == "image" or encoder.weights.endswith(".safetensors"):
        check_weights(encoder.weights)
    return []


def _check_models(flight: Flight) -> Iterable[str]:
    config = flight.draft.config
    problems, sizes = check_models(config, _read_as_stored(flight), with_trials=all(map(flight.draft.is_sure, _MODULE)))
    if sizes is None:
        return problems
    for warning in machine_checks.find_tight_memory(config, sizes, flight.steps):
        log.warning("%s", warning)
    return [
        *machine_checks.find_small_memory(config, sizes, flight.steps),
        *machine_checks.find_small_disk(config, sizes, _clips_to_encode(flight)),
    ]


def _read_as_stored(flight: Flight) -> list[str]:
    return list_read_as_stored(flight.draft.config) if _SHAPED.intersection(flight.steps) else []


def _clips_to_encode(flight: Flight) -> dict[str, int]:
    """Return the number of clips of each feature set to make whose size is certain."""
    experiment = flight.experiment
    if "extract" not in flight.steps or not all(map(flight.draft.is_sure, ("root", "video", "shards"))):
        return {}
    if experiment.shards is None:
        return {}
    splits = Counter(experiment.shards.clips.splits)
    num_train = splits[experiment.config.trials.splits.train]
    return {
        name: splits.total() + (experiment.config.features[name].views - 1) * num_train
        for name, address in experiment.stored_features.items()
        if experiment.config.features[name].reducer.name == "none" and experiment.manifest(address) is None
    }


def _check_manifest(flight: Flight) -> Iterable[str]:
    if flight.draft.config.video.manifest is not None:
        check_rows(flight.draft.config, *flight.experiment.rows)
    return []


def _check_server(flight: Flight) -> Iterable[str]:
    config = flight.draft.config
    silent = list(machine_checks.find_silent_server(config))
    if silent and config.tracking.when_away == "journal" and "sync" not in flight.steps:
        log.warning("%s; tracking.when_away=journal, so runs wait under root", silent[0].partition(";")[0])
        return []
    if not silent and not flight.show:  # `--print` does not wait for the import of MLflow
        importlib.import_module("vidflow.tracking").check_store(store_uri(config), config.tracking.experiment)
    return silent


def _of(find: Callable[[Config], Iterable[str]]) -> Callable[[Flight], Iterable[str]]:
    return lambda flight: find(flight.draft.config)


_FIELDS = (
    "task",
    "features",
    "core",
    "num_layers",
    "num_heads",
    "mix_depths",
    "readout",
    "readout_dim",
    "readout_heads",
)
_MODULE = ("adaptations", *(f"trials.trial.{field}" for field in (*_FIELDS, "feed", "adaptation")))
"""The settings that decide the shape of what a trial trains."""
_SHAPED = frozenset({"extract", "sweep", "plan", "bench"})
_WORK = frozenset(STAGES) | {"plan", "calibrate", "bench", "evaluate"}
_MODELS = frozenset({"extract", "sweep", "plan", "calibrate", "bench"})
CHECKS = (
    Check(_WORK - {"bench"}, ("root", "tracking.uri"), _check_root),
    Check(_WORK, ("resources",), lambda flight: machine_checks.find_misfits(flight.draft.config, flight.steps)),
    Check(_WORK - {"plan", "calibrate"}, ("resources.ray_address",), _of(machine_checks.find_silent_cluster)),
    Check(
        _WORK - {"plan", "calibrate"},
        ("root", "resources.ray_address"),
        lambda flight: machine_checks.find_relative_root(flight.draft),
    ),
    Check(_MODELS - {"sweep"}, ("encoder.family", "encoder.weights"), _check_weights),
    Check(_MODELS, ("encoder", "features", "adaptations", "video.sampling"), _check_models),
    Check(
        frozenset({"sweep", "plan"}),
        ("root", "encoder", "features", "trials.axes", "trials.trial.init_from", *_MODULE),
        _of(find_unfit_weights),
    ),
    Check(
        frozenset({"sweep", "plan", "bench"}),
        ("video.manifest", "video.video_root", "trials.trial.task", "trials.axes"),
        _check_manifest,
    ),
    Check(
        frozenset({"sweep"}),
        ("root", "video", "shards", "encoder", "features", "trials.axes", "resources", *_MODULE),
        lambda flight: machine_checks.find_small_cache(flight.experiment),
    ),
    Check(frozenset({"sweep", "evaluate", "sync"}), ("root", "tracking"), _check_server),
)


__all__ = ["CHECKS", "Check", "Flight", "find_problems", "list_steps"]
