"""Texts that say what a figure shows, for readers who do not see it; computed from the figure's numbers."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from vidflow.report.changes import TrialChange
from vidflow.report.pareto import ParetoSection
from vidflow.report.results import Counted
from vidflow.report.tables import RankedTrial, SeedGroup, describe_settings, most_confused

Format = Callable[[float | None], str]


def name_trial(row: RankedTrial) -> str:
    """Return what tells a trial from the others, or its core if it is the only one."""
    return describe_settings(row.settings) or str(row.result.settings.get("core", "the only trial"))


def describe_curves(ranked: Sequence[RankedTrial], objective: str, value: Format) -> str:
    """Say how many curves there are, and which trial ends highest and lowest."""
    last = [
        (row.result.history[-1].metrics[objective], row)
        for row in ranked
        if row.result.history and objective in row.result.history[-1].metrics
    ]
    text = f"Learning curves of {_count(len(ranked), 'trial')}"
    if not last:
        return text
    last.sort(key=lambda pair: -pair[0])
    ends = list(zip(("highest", "lowest"), (last[0], last[-1]), strict=True))[: len(last)]
    said = [f"{name_trial(row)} ends {word} at {value(score)}" for word, (score, row) in ends]
    return f"{text}; {objective}: {', '.join(said)}"


def describe_groups(groups: Sequence[SeedGroup], objective: str, value: Format) -> str:
    """Say the mean score of every group, best first, up to ten."""
    rows = [f"{describe_settings(group.settings) or 'all trials'} {value(group.mean)}" for group in groups[:10]]
    more = f", and {len(groups) - 10} more" if len(groups) > 10 else ""
    return f"{objective} by setting, best first: {', '.join(rows)}{more}"


def describe_confusion(confusion: Int[np.ndarray, "C C"], class_names: Sequence[str], counted: Counted = "clip") -> str:
    """Say how many clips or videos are right, and which confusion is the most frequent."""
    right, total = int(np.trace(confusion)), int(confusion.sum())
    text = f"Confusion matrix of {len(confusion)} classes: {right} of {_count(total, counted)} right"
    worst = most_confused(confusion, 1)
    if not worst:
        return text
    pair = worst[0]
    return (
        f"{text}; most often {class_names[pair.label]} is taken for {class_names[pair.predicted]}, "
        f"{pair.count} of {pair.total}"
    )


def describe_change(change: TrialChange, best: str, rival: str, class_names: Sequence[str]) -> str:
    """Say how many classes gain and lose, and which do so most."""
    gains = [each for each in change.classes if each.change > 0]
    losses = [each for each in change.classes if each.change < 0]
    parts = [f"{len(gains)} of {len(change.classes)} classes gain"]
    if gains:
        parts[0] += f", most {class_names[gains[0].label]} with {100 * gains[0].change:+.0f} points"
    parts.append(f"{len(losses)} lose")
    if losses:
        parts[1] += f", most {class_names[losses[-1].label]} with {100 * losses[-1].change:+.0f} points"
    return f"Share right by class, from {rival} to {best}: {'; '.join(parts)}"


def describe_pareto(section: ParetoSection, value: Format) -> str:
    """Say which sets score best and which is cheapest, by core."""
    said = []
    for core in dict.fromkeys(point.core for point in section.points):
        points = [point for point in section.points if point.core == core]
        sign = 1 if section.mode == "max" else -1
        best = max(points, key=lambda point: sign * point.mean)
        least = min(points, key=lambda point: point.cost.tokens_per_frame)
        said.append(
            f"with {core}, {best.cost.name} scores best, {value(best.mean)} at {best.cost.tokens_per_frame:.3g} tokens "
            f"per frame, and {least.cost.name} has fewest tokens, {least.cost.tokens_per_frame:.3g}, at "
            f"{value(least.mean)}"
        )
    return f"{section.objective} against tokens, GFLOPs, seconds and bytes: {'; '.join(said)}"


def describe_scores(rows: Sequence[tuple[str, float]], objective: str, value: Format) -> str:
    """Say every score with its name, up to ten."""
    said = [f"{name} {value(score)}" for name, score in rows[:10]]
    more = f", and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"{objective} with intervals: {', '.join(said)}{more}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
