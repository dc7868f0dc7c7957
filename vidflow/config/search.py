"""Axes of a search and the candidates they give, each validated before anything starts."""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vidflow.config.names import nearest_hint
from vidflow.config.schema import AxisValue, Config, Range, Trial, Trials
from vidflow.config.tasks import Objective, TaskName, count_visible, facts_of

_MAX_CANDIDATES = 100_000


def draw_candidates(config: Config) -> tuple[list[Trial], list[str]]:
    """Return every candidate known beforehand, and the problems of those that are not valid.

    A grid is all combinations in the order of the axes; a random search draws `num_samples` from its
    seed. For `optuna`, which chooses as results arrive, the corners of the axes stand in for all.
    """
    trials = config.trials
    names = [f.name for f in dataclasses.fields(Trial)]
    problems = []
    for axis, values in trials.axes.items():
        if axis not in names:
            hint = nearest_hint(axis, names)
            problems.append(f"trials.axes.{axis}: no such field of a trial; {hint}")
        elif isinstance(values, Range):
            problems += _range_problems(axis, values, trials)
        elif not values:
            problems.append(f"trials.axes.{axis}: got no values, wanted at least one")
    if not problems and (number := _num_candidates(trials)) > _MAX_CANDIDATES:
        problems.append(f"trials: {number:.3g} trials, wanted at most {_MAX_CANDIDATES}; drop axes or values")
    if problems:
        return [], problems
    candidates = []
    for overrides in _overrides(trials):
        try:
            candidate = apply_overrides(trials.trial, overrides)
        except ValueError as error:
            problems.append(f"trials.axes: {error}")
            continue
        problems += _candidate_problems(candidate, config)
        candidates.append(candidate)
    problems += _task_problems(trials, {candidate.task for candidate in candidates})
    return list(dict.fromkeys(candidates)), list(dict.fromkeys(problems))


def list_read_as_stored(config: Config) -> list[str]:
    """Return the reduced feature sets that some candidate reads without `unmerge`."""
    names = {candidate.features for candidate in draw_candidates(config)[0] if not candidate.unmerge}
    return [name for name, features in config.features.items() if name in names and features.reducer.name != "none"]


def objective_of(trials: Trials, task: TaskName) -> Objective:
    """Return what ranks a task's epochs and trials."""
    usual = facts_of(task).objective
    return Objective(trials.objective or usual.metric, trials.mode or usual.mode)


def apply_overrides(trial: Trial, overrides: Mapping[str, AxisValue]) -> Trial:
    """Return `trial` with some fields set.

    Raises:
        ValueError: If a value is not valid for its field.
    """
    values: dict[str, Any] = {**dataclasses.asdict(trial), **overrides}
    try:
        return TypeAdapter(Trial).validate_python(values)
    except ValidationError as error:
        described = "; ".join(f"{'.'.join(map(str, e['loc']))}: got {e['input']!r}; {e['msg']}" for e in error.errors())
        raise ValueError(described) from error


def _num_candidates(trials: Trials) -> int:
    if trials.algorithm != "grid":
        return trials.num_samples
    return math.prod(len(_values(axis)) for axis in trials.axes.values())


def _overrides(trials: Trials) -> list[dict[str, AxisValue]]:
    axes = trials.axes
    match trials.algorithm:
        case "grid":
            return [dict(zip(axes, values, strict=True)) for values in itertools.product(*map(_values, axes.values()))]
        case "random":
            rng = random.Random(trials.seed)
            return [{k: _draw(v, rng) for k, v in axes.items()} for _ in range(trials.num_samples)]
        case "optuna":
            return [{k: _values(v)[0] for k, v in axes.items()}, {k: _values(v)[-1] for k, v in axes.items()}]


def _values(axis: list[AxisValue] | Range) -> list[AxisValue]:
    return [axis.low, axis.high] if isinstance(axis, Range) else axis


def _draw(axis: list[AxisValue] | Range, rng: random.Random) -> AxisValue:
    if not isinstance(axis, Range):
        return rng.choice(axis)
    if axis.log:
        return math.exp(rng.uniform(math.log(axis.low), math.log(axis.high)))
    return rng.uniform(axis.low, axis.high)


def _range_problems(axis: str, values: Range, trials: Trials) -> list[str]:
    if trials.algorithm == "grid":
        return [f"trials.axes.{axis}: a range needs `algorithm: random` or `optuna`; a grid wants a list"]
    if not isinstance(getattr(trials.trial, axis), float):
        return [f"trials.axes.{axis}: a range draws fractions; this field wants a list of values"]
    if values.low >= values.high or (values.log and values.low <= 0):
        return [f"trials.axes.{axis}: got low {values.low}, high {values.high}, wanted {'0 < ' * values.log}low < high"]
    return []


def _task_problems(trials: Trials, tasks: set[TaskName]) -> list[str]:
    if len(tasks) < 2:
        return [problem for task in tasks for problem in _objective_problems(trials, task)]
    return [
        f"trials.{name}: got {value!r} for {len(tasks)} tasks, which have no metric in common; {remedy}"
        for name, value, usual, remedy in (
            ("objective", trials.objective, None, "leave it out, then each task has its own"),
            ("scheduler", trials.scheduler, "fifo", "give each task a sweep of its own, or use fifo"),
            ("algorithm", trials.algorithm if trials.algorithm == "optuna" else None, None, "use grid or random"),
        )
        if value != usual
    ]


def _objective_problems(trials: Trials, task: TaskName) -> list[str]:
    names = facts_of(task).list_objectives()
    if trials.objective is None or trials.objective in names:
        return []
    hint = nearest_hint(trials.objective, names)
    return [f"trials.objective: got {trials.objective!r}, which {task} does not measure; {hint}"]


def _candidate_problems(trial: Trial, config: Config) -> list[str]:
    problems = []
    if trial.features not in config.features:
        hint = nearest_hint(trial.features, list(config.features))
        problems.append(f"{key_of(config.trials, 'features')}: got {trial.features!r}, no such feature set; {hint}")
    if trial.readout_dim % trial.readout_heads:
        problems.append(
            f"{key_of(config.trials, 'readout_dim')}: got {trial.readout_dim}, wanted a multiple of "
            f"{key_of(config.trials, 'readout_heads')} = {trial.readout_heads}"
        )
    if trial.readout == "class_token" and trial.task != "classification":
        problems.append(
            f"{key_of(config.trials, 'readout')}: got `class_token` for the task {trial.task}, wanted `attention`"
        )
    if trial.core == "vtm" and trial.task != "classification":
        problems.append(
            f"{key_of(config.trials, 'core')}: got `vtm` for the task {trial.task}, which has ground truth for every "
            "frame; it gives one token of a group of frames, which only classification can read"
        )
    lengths = trial.vtm_groups or ()
    if any(longer % length for length, longer in itertools.pairwise(lengths)):
        problems.append(
            f"{key_of(config.trials, 'vtm_groups')}: got {list(lengths)}, wanted each a multiple of the one before"
        )
    if (wanted := facts_of(trial.task).min_frames) > (got := config.video.sampling.num_frames):
        problems.append(f"video.sampling.num_frames: got {got}, wanted at least {wanted} for the task {trial.task}")
    elif trial.task == "masked_tokens" and not 0 < (visible := count_visible(got, trial.mask_ratio)) < got:
        problems.append(
            f"{key_of(config.trials, 'mask_ratio')}: got {trial.mask_ratio}, which leaves {visible} of {got} frames "
            "visible; wanted at least 1, and at least 1 hidden"
        )
    return problems


def key_of(trials: Trials, field: str) -> str:
    """Return the key of the setting that gives a field of a trial its value."""
    return f"trials.axes.{field}" if field in trials.axes else f"trials.trial.{field}"
