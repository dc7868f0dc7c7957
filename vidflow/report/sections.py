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
from vidflow.report.alts import describe_change, describe_confusion, describe_curves, describe_groups, name_trial
from vidflow.report.changes import TrialChange
from vidflow.report.figures import (
    Drawing,
    changes_figure,
    confusion_figure,
    curves_figure,
    draw_all,
    settings_figure,
)
from vidflow.report.formats import format_change, format_interval, format_metric, is_share
from vidflow.report.pictures import OVER_FRAMES, Picture, explain_pictures
from vidflow.report.results import Counted
from vidflow.report.seen import Seen
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

NUM_CONFUSED = 12
"""Confusions that the page lists."""
_NUM_CHANGED = 15  # classes with the largest gains, and as many with the largest losses


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
        counted: What the best trial's scores and confusions count. A video is shown by its first clip.
        pictures: Predictions of the best trial drawn with the truth.
        confused_clips: (true, predicted class) -> keys of the best trial's clips that it confuses so.
        others: Further clips that the tables name, with the best trial's predictions.
        change: How the best trial's answers differ from another trial's; None if there is no other.
        seen: What the best trial sees; None if it cannot be shown.
        runs: Key of a trial -> id of its MLflow run; empty if not known.
        predict: The command that runs the best trial on a video; empty if there is no best trial.
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
    counted: Counted = "clip"
    pictures: Sequence[Picture] = ()
    confused_clips: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    others: Sequence[Example] = ()
    change: TrialChange | None = None
    seen: Seen | None = None
    runs: Mapping[str, str] = field(default_factory=dict)
    predict: str = ""


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
        "test": best.result.test.get(section.objective.replace("val/", "test/", 1)) if best else None,
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
        "confused": [] if section.confusion is None else most_confused(section.confusion, NUM_CONFUSED),
        "classes": [] if section.confusion is None else class_scores(section.confusion),
        "has_intervals": any(row.low is not None for row in ranked),
        "value": lambda value: format_metric(section.objective, value),
        "interval": lambda row: format_interval(section.objective, row.low, row.high),
        "shown": {example.key for example in (*section.examples, *section.others)},
        "run": section.runs.get(best.result.key) if best else None,
        "best_name": name_trial(best) if best else "",
        "rival_name": name_trial(section.change.rival) if section.change else "",
        **_drawings(section, ranked, groups),
        **_texts(section, ranked, groups),
    }


def _change(section: TaskSection, row: RankedTrial) -> str:
    """Return how a trial differs from the trivial answer; empty if one of the two is missing."""
    baseline = section.baseline.get(section.objective)
    if baseline is None or row.score is None or row.failed:
        return ""
    return format_change(section.objective, row.score, baseline)


def _drawings(
    section: TaskSection, ranked: Sequence[RankedTrial], groups: Sequence[SeedGroup]
) -> dict[str, Drawing | None]:
    colour_by, objective, confusion = colour_setting(section.trials), section.objective, section.confusion
    metrics = [objective, *(name for name in ("val/loss", "train/loss") if name != objective)]
    shares = {name: is_share(name) for name in metrics}
    has_curves = any(row.result.history for row in ranked)
    return {
        "curves": draw_all(lambda look: curves_figure(ranked, metrics, colour_by=colour_by, is_share=shares, look=look))
        if has_curves
        else None,
        "effects": draw_all(
            lambda look: settings_figure(
                groups, objective, colour_by=colour_by, is_share=is_share(objective), look=look
            )
        )
        if len(ranked) > 1
        else None,
        "confusion": None
        if confusion is None
        else draw_all(lambda look: confusion_figure(confusion, section.class_names, look=look)),
        "changes": None if section.change is None else _draw_changes(section, section.change, ranked[0]),
    }


def _draw_changes(section: TaskSection, change: TrialChange, best: RankedTrial) -> Drawing:
    classes = list(change.classes)
    if len(classes) > 2 * _NUM_CHANGED:
        classes = [*classes[:_NUM_CHANGED], *classes[-_NUM_CHANGED:]]
    names = [section.class_names[each.label] for each in classes]
    before, after = ([getattr(each, side) / each.total for each in classes] for side in ("before", "after"))
    labels = (name_trial(change.rival), name_trial(best))
    return draw_all(lambda look: changes_figure(names, before, after, labels=labels, look=look))


def _texts(section: TaskSection, ranked: Sequence[RankedTrial], groups: Sequence[SeedGroup]) -> dict[str, str]:
    """Return what each figure shows, in words."""
    names, change = section.class_names, section.change

    def value(number: float | None) -> str:
        return format_metric(section.objective, number)

    return {
        "curves_text": describe_curves(ranked, section.objective, value),
        "effects_text": describe_groups(groups, section.objective, value),
        "confusion_text": ""
        if section.confusion is None
        else describe_confusion(section.confusion, names, section.counted),
        "changes_text": ""
        if change is None
        else describe_change(change, name_trial(ranked[0]), name_trial(change.rival), names),
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
