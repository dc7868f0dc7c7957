"""Accuracy against cost of one classifier, a series per mode and schedule."""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vidflow.report.evaluation import COST_AXES, CostAxis, SeriesPoint
from vidflow.report.figures.canvas import LIGHT, Look, open_figure, to_png

_MODES = ("merge", "drop", "random_merge", "random_drop", "hybrid")
_SCHEDULES = {"constant": ("-", "o"), "decreasing": ("--", "v"), "increasing": (":", "^")}


def evaluation_figure(points: Sequence[SeriesPoint], *, title: str, look: Look = LIGHT) -> bytes:
    """Draw top-1 accuracy against counted and measured cost.

    Args:
        points: Points of one model, r = 0 first.
        title: Name of the model.
        look: Light or dark, wide or narrow; narrow panels are one below the other.
    """
    rows, columns = (len(COST_AXES), 1) if look.is_narrow else (1, len(COST_AXES))
    with open_figure(11.4, 3.1 * rows + 0.9 if look.is_narrow else 4.6, look) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (axis, label) in zip(panels, COST_AXES.items(), strict=True):
            _draw(axes, points, axis, look)
            axes.set(xlabel=label, ylabel="top-1", title=title)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        handles, names = _legend(points, look)
        figure.legend(handles, names, loc="outside lower center", ncols=2 if look.is_narrow else min(5, len(names)))
        return to_png(figure)


def _draw(axes: Axes, points: Sequence[SeriesPoint], axis: CostAxis, look: Look) -> None:
    base, colours = points[0], _colours(look)
    axes.axhspan(base.low, base.high, color=look.grey, alpha=0.16, lw=0)
    axes.axhline(base.score, color=look.grey, lw=1)
    for mode, schedule in dict.fromkeys((each.point.mode, each.point.schedule) for each in points[1:]):
        series = [each for each in points[1:] if (each.point.mode, each.point.schedule) == (mode, schedule)]
        known = [(cost, each) for each in [base, *series] if (cost := each.at(axis)) is not None]
        known.sort(key=lambda pair: pair[1].point.r)
        style, marker = _SCHEDULES[schedule]
        axes.plot([cost for cost, _ in known], [each.score for _, each in known], style, color=colours[mode], lw=1.4)
        for cost, each in known[1:]:
            axes.plot([cost, cost], [each.low, each.high], color=colours[mode], lw=0.9, alpha=0.4)
            axes.plot(cost, each.score, marker, color=colours[mode], ms=6, mec=look.ground, mew=0.6)
    if (cost := base.at(axis)) is not None:
        axes.plot(cost, base.score, "s", color=look.ink, ms=7, mec=look.ground, mew=0.6)
    axes.margins(x=0.06)


def _colours(look: Look) -> dict[str, str]:
    return dict(zip(_MODES, look.colours, strict=False))


def _legend(points: Sequence[SeriesPoint], look: Look) -> tuple[list[mpl.lines.Line2D], list[str]]:
    """Return a mark for r = 0, for every mode, and for every schedule if there are several."""
    line, colours = mpl.lines.Line2D, _colours(look)
    used = {each.point.mode for each in points[1:]}
    schedules = [name for name in _SCHEDULES if name in {each.point.schedule for each in points[1:]}]
    marks = [(line([], [], color=look.ink, marker="s", ls=""), "r = 0, with its interval")]
    marks += [(line([], [], color=colours[mode], lw=2.4), mode.replace("_", " ")) for mode in _MODES if mode in used]
    if len(schedules) > 1:
        marks += [
            (line([], [], color=look.grey, ls=style, marker=marker), name)
            for name, (style, marker) in _SCHEDULES.items()
            if name in schedules
        ]
    return [mark for mark, _ in marks], [name for _, name in marks]
