"""The report's content about one task: its trials against a trivial answer, curves and pictures.

Axes: T frames, H and W pixels, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vidflow.config.tasks import Mode, TaskName, facts_of
from vidflow.records import TrialResult
from vidflow.report.figures import confusion_figure, curves_figure, settings_figure
from vidflow.report.formats import format_change, format_interval, format_metric, is_share
from vidflow.report.pictures import OVER_FRAMES, Picture, explain_pictures
from vidflow.report.tables import (
    RankedTrial,
    SeedGroup,
    class_scores,
    colour_setting,
    group_by_seed,
    most_confused,
    rank_trials,
    shared_settings,
)

_NUM_CONFUSED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A clip and the best trial's prediction for it.

    Attributes:
        frames: RGB frames of the clip.
        key: The clip's content key.
        label: True class; empty if the task has no classes.
        predicted: Predicted class; empty if the task has no classes.
        probability: Probability of the predicted class, in [0, 1]; None if the task has no classes.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    key: str
    label: str
    predicted: str
    probability: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSection:
    """Everything that the page shows about one task.

    Attributes:
        task: Name of the task, such as `box_tracking`.
        objective: Metric by which trials are ranked, such as `val/top1`.
        mode: Whether more of it is better.
        trials: Results in any order.
        baseline: Metrics of a trivial answer on the same clips, with the same names; empty if not measured.
        baseline_answer: What that answer is.
        class_names: Names by class index; empty if the task has no classes.
        examples: Clips with predictions of the best trial.
        confusion: Validation clips of the best trial by true (rows) and predicted class; None if there are none.
        pictures: Predictions of the best trial drawn with the truth.
    """

    task: TaskName
    objective: str
    mode: Mode
    trials: Sequence[TrialResult]
    baseline: Mapping[str, float] = field(default_factory=dict)
    baseline_answer: str = ""
    class_names: Sequence[str] = ()
    examples: Sequence[Example] = ()
    confusion: Int[np.ndarray, "C C"] | None = None
    pictures: Sequence[Picture] = ()


def view_section(section: TaskSection, *, prefix: str) -> dict[str, Any]:
    """Return what the template shows about a task.

    Args:
        section: The task.
        prefix: Prefix of the names of the task's anchors on the page.
    """
    ranked = rank_trials(section.trials, section.objective, section.mode)
    groups = group_by_seed(ranked, section.mode)
    best = next((row for row in ranked if row.is_best), None)
    baseline = section.baseline.get(section.objective)
    predicts = facts_of(section.task).predicts
    return {
        "data": section,
        "prefix": prefix,
        "name": section.task.replace("_", " "),
        "ranked": ranked,
        "best": best,
        "baseline": baseline,
        "change": lambda row: _change(section, row),
        "rivals": _rivals(ranked, best),
        "failed": [row for row in ranked if row.failed],
        "groups": groups,
        "has_seeds": any(len(group.trials) > 1 for group in groups),
        "setting_names": list(ranked[0].settings) if ranked else [],
        "shared": shared_settings(section.trials),
        "span": _span(ranked, baseline),
        "is_drawn_over_frames": predicts in OVER_FRAMES,
        "how_to_read": explain_pictures(predicts),
        "confused": [] if section.confusion is None else most_confused(section.confusion, _NUM_CONFUSED),
        "classes": [] if section.confusion is None else class_scores(section.confusion),
        "has_intervals": any(row.low is not None for row in ranked),
        "value": lambda value: format_metric(section.objective, value),
        "interval": lambda row: format_interval(section.objective, row.low, row.high),
        **_pictures(section, ranked, groups),
    }


def _change(section: TaskSection, row: RankedTrial) -> str:
    """Return how a trial differs from the trivial answer; empty if one of the two is missing."""
    baseline = section.baseline.get(section.objective)
    if baseline is None or row.score is None or row.failed:
        return ""
    return format_change(section.objective, row.score, baseline)


def _pictures(
    section: TaskSection, ranked: Sequence[RankedTrial], groups: Sequence[SeedGroup]
) -> dict[str, bytes | None]:
    colour_by = colour_setting(section.trials)
    metrics = [section.objective, *(name for name in ("val/loss", "train/loss") if name != section.objective)]
    shares = {name: is_share(name) for name in metrics}
    has_curves = any(row.result.history for row in ranked)
    return {
        "curves": curves_figure(ranked, metrics, colour_by=colour_by, is_share=shares) if has_curves else None,
        "effects": settings_figure(groups, section.objective, colour_by=colour_by, is_share=is_share(section.objective))
        if len(ranked) > 1
        else None,
        "confusion": None if section.confusion is None else confusion_figure(section.confusion, section.class_names),
    }


def _rivals(ranked: Sequence[RankedTrial], best: RankedTrial | None) -> int | None:
    """Count the other trials whose score is within the best trial's interval; None if there is no interval."""
    if best is None or best.low is None or best.high is None:
        return None
    low, high = best.low, best.high
    others = [row.score for row in ranked if row is not best and not row.failed and row.score is not None]
    return sum(low <= score <= high for score in others)


def _span(ranked: Sequence[RankedTrial], baseline: float | None) -> tuple[float, float]:
    """Return the ends of the scale on which the table draws scores and intervals."""
    scores = [v for row in ranked if not row.failed for v in (row.low, row.score, row.high)]
    values = [v for v in (*scores, baseline) if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
