"""One page about several sweeps: the best trial of each, what it scores and what it costs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidflow.config.tasks import Mode
from vidflow.objects import is_mirror, show_urls
from vidflow.report.alts import describe_scores, name_trial
from vidflow.report.figures import Drawing, ScoreBar, draw_all, scores_figure
from vidflow.report.formats import format_change, format_interval, format_metric, is_share
from vidflow.report.page import render
from vidflow.report.sweeps import SweepBest


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Sweeps that measured the same metric of the same task, best first."""

    task: str
    metric: str
    mode: Mode
    bests: Sequence[SweepBest]

    @property
    def drawing(self) -> Drawing:
        """A line per sweep."""
        bars = [
            ScoreBar(name=self.name(each), score=each.best.score, low=each.best.low, high=each.best.high)
            for each in self.bests
            if each.best.score is not None
        ]
        return draw_all(lambda look: scores_figure(bars, self.metric, is_share=is_share(self.metric), look=look))

    @property
    def text(self) -> str:
        """The drawing in words."""
        rows = [(self.name(each), each.best.score) for each in self.bests if each.best.score is not None]
        return describe_scores(rows, self.metric, self.value)

    @property
    def clips(self) -> str:
        """Whether the scores are of the same clips, which decides whether they may be compared."""
        digests = {each.features.clips for each in self.bests if each.features is not None}
        if any(each.features is None for each in self.bests):
            return "Some of the features are no longer on this disk, so it is not known whether the clips are the same."
        if len(digests) > 1:
            return "Not all sweeps used the same clips, so a difference may come from the clips."
        return "All sweeps used the same clips in the same splits."

    @property
    def are_same_clips(self) -> bool:
        """Whether it is known that all scores are of the same clips."""
        return len({each.features.clips if each.features else object() for each in self.bests}) == 1

    @property
    def cores(self) -> list[tuple[str, list[str]]]:
        """A row per core that some sweep has tried: its best score in each sweep."""
        names = dict.fromkeys(str(row.result.settings["core"]) for each in self.bests for row in each.ranked)
        return [(core, [self._best_of(each, core) for each in self.bests]) for core in names]

    def name(self, each: SweepBest) -> str:
        """Return a sweep's name; with the beginning of its key if another sweep has the same name."""
        is_alone = [other.sweep.name for other in self.bests].count(each.sweep.name) == 1
        return each.sweep.name if is_alone else f"{each.sweep.name} {each.sweep.directory.name[:6]}"

    def value(self, number: float | None) -> str:
        """Return a score in words."""
        return format_metric(self.metric, number)

    def interval(self, each: SweepBest) -> str:
        """Return the best trial's interval; empty if it has none."""
        low, high = each.best.low, each.best.high
        return format_interval(self.metric, low, high) if low is not None and high is not None else ""

    def change(self, each: SweepBest) -> str:
        """Return how the best trial differs from the trivial answer; empty if that was not measured."""
        if each.best.score is None or each.baseline is None:
            return ""
        return format_change(self.metric, each.best.score, each.baseline)

    def _best_of(self, each: SweepBest, core: str) -> str:
        rows = (row for row in each.ranked if row.result.settings["core"] == core and not row.failed)
        row = next(rows, None)  # they are best first
        return self.value(row.score) if row is not None else ""


def group_bests(bests: Sequence[SweepBest]) -> list[Comparison]:
    """Return a comparison per task and metric, each with its sweeps best first."""
    groups: dict[tuple[str, str, Mode], list[SweepBest]] = {}
    for each in bests:
        groups.setdefault((each.task, *each.objective), []).append(each)
    return [
        Comparison(
            task=task,
            metric=metric,
            mode=mode,
            bests=sorted(rows, key=lambda each: each.best.score or 0.0, reverse=mode == "max"),
        )
        for (task, metric, mode), rows in groups.items()
    ]


def render_comparison(bests: Sequence[SweepBest], *, page: Path, num_sweeps: int) -> str:
    """Return the page as HTML.

    Args:
        bests: The best trials.
        page: Where the page is going to be; links to reports are relative to it.
        num_sweeps: Number of sweeps.
    """

    def link(each: SweepBest) -> str | None:
        if each.report is None or is_mirror(each.report):
            return None if each.report is None else show_urls(str(each.report))
        return os.path.relpath(each.report.resolve(), page.resolve().parent)

    view: dict[str, Any] = {"comparisons": group_bests(bests), "link": link, "num_sweeps": num_sweeps}
    return render("compare.html", view, {"trial": name_trial_with_core})


def name_trial_with_core(each: SweepBest) -> str:
    """Return what tells a trial from the others of its sweep, with its core."""
    core, name = str(each.best.result.settings["core"]), name_trial(each.best)
    return name if core in name else f"{core} · {name}"
