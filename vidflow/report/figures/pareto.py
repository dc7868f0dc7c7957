"""Score against cost of feature sets."""

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from vidflow.report.figures.canvas import LIGHT, Look, open_figure, shorten, to_png
from vidflow.report.pareto import AXES, Axis, ParetoPoint, ParetoSection

_LOG_RATIO = 20  # costs that differ by a larger factor are drawn on a logarithmic scale


def pareto_figure(section: ParetoSection, *, is_share: bool, look: Look = LIGHT) -> bytes:
    """Draw score against each cost, a row per core: the front in colour, dominated sets grey, random sets as crosses.

    Args:
        section: Points of one task.
        is_share: Whether the score is a share, shown in percent.
        look: Light or dark, wide or narrow; narrow panels are one below the other.
    """
    cores = list(dict.fromkeys(point.core for point in section.points))
    panels_of = [(core, axis) for core in cores for axis in AXES]
    rows, columns = (len(panels_of), 1) if look.is_narrow else (len(cores), len(AXES))
    height = 2.4 * rows + 0.6 if look.is_narrow else 3.3 * rows + 0.6
    with open_figure(12.6, height, look) as figure:
        # Panels below each other have costs of different kinds.
        sharex: Literal["none", "col"] = "none" if look.is_narrow else "col"
        sharey: Literal["none", "row"] = "none" if look.is_narrow else "row"
        panels = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
        for axes, (core, axis) in zip(panels.flat, panels_of, strict=True):
            _front(axes, [point for point in section.points if point.core == core], axis, look)
            if is_share:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            if look.is_narrow or axis == next(iter(AXES)):
                axes.set(title=core, ylabel=section.objective)
            if look.is_narrow or core == cores[-1]:
                axes.set_xlabel(AXES[axis])
            if axis == "bytes":
                axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        marks = {
            "on the front": ("o", look.colours[0]),
            "dominated": ("o", look.grey),
            "chance": ("X", look.colours[1]),
        }
        handles = [mpl.lines.Line2D([], [], marker=mark, color=colour, ls="") for mark, colour in marks.values()]
        figure.legend(handles, list(marks), loc="outside lower center", ncols=len(marks))
        return to_png(figure)


def _front(axes: Axes, points: Sequence[ParetoPoint], axis: Axis, look: Look) -> None:
    """Draw the points of one core against one cost; points on the front have names."""
    known = [(cost, point) for point in points if (cost := point.at(axis)) is not None]
    front = sorted((cost, point.mean, point.cost.name) for cost, point in known if axis in point.fronts)
    if front:
        axes.plot([x for x, _, _ in front], [y for _, y, _ in front], color=look.colours[0], lw=1.2, alpha=0.5)
    for cost, point in known:
        is_random = point.cost.is_random
        colour = look.colours[1] if is_random else look.colours[0] if axis in point.fronts else look.grey
        if point.low is not None and point.high is not None:
            axes.plot([cost, cost], [point.low, point.high], color=colour, lw=0.9, alpha=0.4)
        axes.plot(cost, point.mean, "X" if is_random else "o", color=colour, ms=6.5, mec=look.ground, mew=0.6)
    for place, (x, y, name) in enumerate(front):
        # Names are alternately above and below, because neighbours on a front are close.
        offset, side = ((5, 6), "bottom") if place % 2 else ((5, -6), "top")
        axes.annotate(shorten(name), (x, y), offset, textcoords="offset points", va=side, fontsize=7.5)
    if len(known) > 1 and max(cost for cost, _ in known) > _LOG_RATIO * min(cost for cost, _ in known) > 0:
        axes.set_xscale("log")
    axes.margins(x=0.2)
