"""Figures of trials: learning curves, scores by setting, scores of two trials by class, sweeps side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vidflow.report.figures.canvas import LIGHT, Look, name_colours, open_figure, shorten, to_png
from vidflow.report.tables import RankedTrial, SeedGroup, describe_settings

_MAX_GROUPS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBar:
    """One line of a figure of scores: a name, the score and its 95 percent interval, if it has one."""

    name: str
    score: float
    low: float | None = None
    high: float | None = None


def curves_figure(
    ranked: Sequence[RankedTrial],
    metrics: Sequence[str],
    *,
    colour_by: str,
    is_share: Mapping[str, bool],
    look: Look = LIGHT,
) -> bytes:
    """Draw every trial's metrics over its epochs, one panel per metric, the best trial in bold.

    Args:
        ranked: Trials, best first.
        metrics: Names of metrics; those that no trial has are left out.
        colour_by: Setting that decides the colour; each of its values has its own.
        is_share: Metric -> whether it is a share, shown in percent; a metric that is absent is not.
        look: Light or dark, wide or narrow; narrow panels are one below the other.
    """
    metrics = [m for m in metrics if any(m in epoch.metrics for row in ranked for epoch in row.result.history)]
    colours = name_colours([row.result.settings.get(colour_by) for row in ranked], look)
    number = max(1, len(metrics))
    with open_figure(10.6, 2.3 * number + 0.9 if look.is_narrow else 4.1, look) as figure:
        rows, columns = (number, 1) if look.is_narrow else (1, number)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, metric in zip(panels, metrics, strict=False):
            axes.set(title=metric)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if is_share.get(metric, False):
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            for row in reversed(ranked):
                _curve(axes, row, metric, colours[str(row.result.settings.get(colour_by))])
        for axes in panels[-1:] if look.is_narrow else panels:
            axes.set_xlabel("epoch")
        handles = [mpl.lines.Line2D([], [], color=colour, lw=2.2) for colour in colours.values()]
        names = [shorten(name) for name in colours]
        figure.legend(
            handles,
            names,
            title=f"{colour_by} (bold: best trial)",
            loc="outside lower center",
            ncols=2 if look.is_narrow else 4,
        )
        return to_png(figure)


def settings_figure(
    groups: Sequence[SeedGroup], objective: str, *, colour_by: str, is_share: bool, look: Look = LIGHT
) -> bytes:
    """Draw the score of every group of settings: a dot per seed with its interval, and a bar at their mean.

    Args:
        groups: Groups, best first; the first 30 are drawn.
        objective: Name of the score.
        colour_by: Setting that decides the colour; each of its values has its own.
        is_share: Whether the score is a share, shown in percent.
        look: Light or dark, wide or narrow.
    """
    groups = groups[:_MAX_GROUPS]
    colours = name_colours([group.trials[0].result.settings.get(colour_by) for group in groups], look)
    names = [describe_settings(group.settings) or "all trials" for group in groups]
    with open_figure(9.2, 1.1 + 0.42 * len(groups), look) as figure:
        axes = figure.subplots()
        for place, group in enumerate(groups):
            colour = colours[str(group.trials[0].result.settings.get(colour_by))]
            axes.plot(
                [group.mean] * 2, [place - 0.34, place + 0.34], color=colour, lw=7, alpha=0.3, solid_capstyle="butt"
            )
            offsets = (np.arange(len(group.trials)) + 0.5) / len(group.trials) * 0.56 - 0.28
            for row, offset in zip(group.trials, offsets, strict=True):
                if row.score is not None:
                    _dot(axes, ScoreBar(name="", score=row.score, low=row.low, high=row.high), place + offset, colour)
        _name_rows(axes, names, objective, is_share=is_share, look=look)
        return to_png(figure)


def scores_figure(bars: Sequence[ScoreBar], objective: str, *, is_share: bool, look: Look = LIGHT) -> bytes:
    """Draw scores with their intervals, one line each, in the given order."""
    with open_figure(9.2, 1.1 + 0.42 * len(bars), look) as figure:
        axes = figure.subplots()
        for place, bar in enumerate(bars):
            _dot(axes, bar, place, look.colours[0])
        _name_rows(axes, [bar.name for bar in bars], objective, is_share=is_share, look=look)
        return to_png(figure)


def changes_figure(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    *,
    labels: tuple[str, str],
    look: Look = LIGHT,
) -> bytes:
    """Draw the shares of two trials, a line per class, joined in the colour of the better one.

    Args:
        names: Classes, from the top.
        before: Share that the first trial gets right, in [0, 1].
        after: Share that the second one gets right.
        labels: What the two trials are called.
        look: Light or dark, wide or narrow.
    """
    gain, loss = look.colours[0], look.colours[1]
    with open_figure(9.2, 1.3 + 0.3 * len(names), look) as figure:
        axes = figure.subplots()
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            axes.plot([old, new], [place, place], color=gain if new >= old else loss, lw=2.6, solid_capstyle="butt")
            axes.plot(old, place, "o", color=look.grey, ms=6, mec=look.ground, mew=0.8)
            axes.plot(new, place, "o", color=gain if new >= old else loss, ms=7, mec=look.ground, mew=0.8)
        _name_rows(axes, names, "share of the class that is right", is_share=True, look=look)
        axes.set_xlim(-0.03, 1.03)
        marks = {labels[0]: look.grey, f"{labels[1]}, better": gain, f"{labels[1]}, worse": loss}
        handles = [mpl.lines.Line2D([], [], marker="o", color=colour, ls="") for colour in marks.values()]
        figure.legend(
            handles,
            [shorten(name, 40) for name in marks],
            loc="outside lower center",
            ncols=1 if look.is_narrow else 3,
        )
        return to_png(figure)


def _name_rows(axes: Axes, names: Sequence[str], objective: str, *, is_share: bool, look: Look) -> None:
    """Write a name beside each row."""
    axes.set(xlabel=objective, ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    if is_share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks(range(len(names)), [shorten(name, 16 if look.is_narrow else 48) for name in names])


def _curve(axes: Axes, row: RankedTrial, metric: str, colour: str) -> None:
    points = [(epoch.epoch, epoch.metrics[metric]) for epoch in row.result.history if metric in epoch.metrics]
    if points:
        marker = "o" if len(points) == 1 else None
        width, alpha = (2.4, 1.0) if row.is_best else (1.1, 0.65)
        axes.plot(*zip(*points, strict=True), color=colour, lw=width, alpha=alpha, marker=marker, ms=3)


def _dot(axes: Axes, bar: ScoreBar, height: float, colour: str) -> None:
    if bar.low is not None and bar.high is not None:
        axes.plot([bar.low, bar.high], [height, height], color=colour, lw=1.1, alpha=0.55)
    axes.plot(bar.score, height, "o", color=colour, ms=4.5, mew=0)
