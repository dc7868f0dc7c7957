"""The values of the report's tables, computed from results; no formatting, no files.

Axes: C classes.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import cast

import numpy as np
from jaxtyping import Int

from vidflow.config.tasks import Mode
from vidflow.errors import RejectReason
from vidflow.records import Reject, RejectStage, TrialResult

_WAIT = "train/wait"
Setting = str | int | float | bool | list[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedTrial:
    """One trial with its score among all trials.

    Attributes:
        result: The trial.
        settings: Those of its settings that differ between trials.
        score: The objective at its best epoch; None if it has none.
        low: Lower bound of the score's 95 percent interval; None if the metric has no interval.
        high: Upper bound of that interval.
        seconds: Wall seconds of all its epochs.
        is_best: Whether it is the best of the trials that did not fail.
        step_seconds: Median over the epochs of the mean seconds of a step; None if the encoder did not run in it.
        wait: Median over the epochs of the share of a step in which it waited for data; None likewise.
    """

    result: TrialResult
    settings: dict[str, Setting]
    score: float | None
    low: float | None
    high: float | None
    seconds: float
    is_best: bool
    step_seconds: float | None = None
    wait: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the trial failed; its score, if it has one, is then ignored."""
        return self.result.status == "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Trials that differ only in their seed.

    Attributes:
        settings: The settings in which this group differs from other groups.
        trials: Its trials, best first; none of them failed.
        mean: Mean of their scores.
        lowest: Smallest score.
        highest: Largest score.
    """

    settings: dict[str, Setting]
    trials: tuple[RankedTrial, ...]
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectGroup:
    """Inputs left out by one stage for one reason."""

    stage: RejectStage
    reason: RejectReason
    rejects: tuple[Reject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedPair:
    """A true class and another class that was predicted instead.

    Attributes:
        label: True class.
        predicted: Predicted class.
        count: Number of these clips.
        total: Number of clips of the true class.
    """

    label: int
    predicted: int
    count: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """How many clips of a class were predicted correctly."""

    label: int
    hits: int
    total: int


def varying_settings(trials: Sequence[TrialResult]) -> list[str]:
    """Return the settings that differ between trials, in the order of the trial's fields, with the seed last."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    # By their text, because 1, True and 1.0 are equal in Python, and a list cannot be in a set.
    varying = [name for name in names if len({repr(trial.settings.get(name)) for trial in trials}) > 1]
    return sorted(varying, key=lambda name: name == "seed")


def shared_settings(trials: Sequence[TrialResult]) -> dict[str, Setting]:
    """Return the settings that all trials have in common."""
    varying = varying_settings(trials)
    return {k: v for trial in trials[:1] for k, v in trial.settings.items() if k not in varying}


def rank_trials(trials: Sequence[TrialResult], objective: str, mode: Mode) -> list[RankedTrial]:
    """Return all trials: those with a score, best first, then those without a score, then those that failed.

    Args:
        trials: Results in any order.
        objective: Metric, such as `val/top1`; its interval is `val/top1_low` to `val/top1_high`.
        mode: Whether more of it is better.
    """
    names = varying_settings(trials)
    sign = -1 if mode == "max" else 1
    rows = [_unranked(trial, names, objective) for trial in trials]
    rows.sort(key=lambda row: (row.failed, row.score is None, sign * (row.score or 0.0)))
    if rows and not rows[0].failed and rows[0].score is not None:
        rows[0] = replace(rows[0], is_best=True)
    return rows


def group_by_seed(ranked: Sequence[RankedTrial], mode: Mode) -> list[SeedGroup]:
    """Return the trials that have a score, grouped by everything but the seed, best mean first."""
    members = defaultdict(list)
    for row in ranked:
        if row.score is not None and not row.failed:
            rest = {name: value for name, value in row.result.settings.items() if name != "seed"}
            members[repr(sorted(rest.items()))].append(row)
    groups = [_seed_group(rows) for rows in members.values()]
    return sorted(groups, key=lambda group: group.mean, reverse=mode == "max")


def colour_setting(trials: Sequence[TrialResult]) -> str:
    """Return the setting that decides a trial's colour: the core or, if all have the same, the first that differs."""
    names = [name for name in varying_settings(trials) if name != "seed"]
    return "core" if "core" in names or not names else names[0]


def describe_settings(settings: Mapping[str, Setting]) -> str:
    """Return settings on one line; text values are given without their names."""
    return " · ".join(str(v) if isinstance(v, str) else f"{k} {_short(v)}" for k, v in settings.items())


def group_rejects(rejects: Sequence[Reject]) -> list[RejectGroup]:
    """Return rejects by stage and reason, the most frequent reason first."""
    members = defaultdict(list)
    for reject in rejects:
        members[reject.stage, reject.reason].append(reject)
    groups = [RejectGroup(stage=key[0], reason=key[1], rejects=tuple(rows)) for key, rows in members.items()]
    return sorted(groups, key=lambda group: (-len(group.rejects), group.stage, group.reason))


def confusion_matrix(
    labels: Int[np.ndarray, " clips"], predicted: Int[np.ndarray, " clips"], num_classes: int
) -> Int[np.ndarray, "C C"]:
    """Count clips by true class (rows) and predicted class (columns)."""
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(confusion: Int[np.ndarray, "C C"], limit: int) -> list[ConfusedPair]:
    """Return the off-diagonal cells with most clips: at most `limit` cells, and no empty cell."""
    errors = confusion - np.diag(np.diag(confusion))
    cells = np.argsort(-errors, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(cells, errors.shape)
    return [
        ConfusedPair(label=int(i), predicted=int(j), count=int(errors[i, j]), total=int(confusion[i].sum()))
        for i, j in zip(rows, columns, strict=True)
        if errors[i, j] > 0
    ]


def class_scores(confusion: Int[np.ndarray, "C C"]) -> list[ClassScore]:
    """Return every class with its clips and its correct ones, the worst first and classes without clips last."""
    counts = zip(np.diag(confusion), confusion.sum(axis=1), strict=True)
    scores = [ClassScore(label=i, hits=int(hits), total=int(total)) for i, (hits, total) in enumerate(counts)]
    return sorted(scores, key=lambda score: (score.total == 0, score.hits / max(score.total, 1)))


def _unranked(trial: TrialResult, names: Sequence[str], objective: str) -> RankedTrial:
    metrics = trial.best.metrics if trial.best is not None else {}
    score = metrics.get(objective)
    return RankedTrial(
        result=trial,
        settings={name: trial.settings.get(name) for name in names},
        score=score if score is not None and math.isfinite(score) else None,
        low=metrics.get(f"{objective}_low"),
        high=metrics.get(f"{objective}_high"),
        seconds=sum((epoch.seconds for epoch in trial.history), start=0.0),
        is_best=False,
        **_read_waits(trial),
    )


def _read_waits(trial: TrialResult) -> dict[str, float]:
    """Return the seconds of a step and its share of waiting, where trials record them."""
    epochs = [epoch.metrics for epoch in trial.history if _WAIT in epoch.metrics]
    if not epochs:
        return {}
    batch_size = float(cast(int, trial.settings["batch_size"]))
    return {
        "step_seconds": median(batch_size / epoch["train/clips_per_second"] for epoch in epochs),
        "wait": median(epoch[_WAIT] for epoch in epochs),
    }


def _seed_group(rows: Sequence[RankedTrial]) -> SeedGroup:
    scores = [row.score for row in rows if row.score is not None]
    return SeedGroup(
        settings={name: value for name, value in rows[0].settings.items() if name != "seed"},
        trials=tuple(rows),
        mean=fmean(scores),
        lowest=min(scores),
        highest=max(scores),
    )


def _short(value: Setting) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
