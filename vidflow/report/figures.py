"""The report's pictures, as PNG or JPEG bytes; the only importer of matplotlib.

Axes: T frames, n pictured frames, H and W pixels, C classes.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from PIL import Image

from vidflow.report.pareto import AXES, Axis, ParetoPoint, ParetoSection
from vidflow.report.tables import RankedTrial, SeedGroup, describe_settings
from vidflow.spread import spread

DPI = 180
"""Pixels per inch of every figure; the page shows figures at their size in inches, so all text has the same size."""

# Okabe and Ito's colours, which colour-blind readers can distinguish; those too light for a thin line are darkened.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b1548a", "#8c6d00", "#3d9bd1", "#4d4d4d", "#9a3324")
_INK, _FAINT = "#26303a", "#d9dee3"
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "text.color": _INK,
    "text.parse_math": False,  # class names come from the user and may contain a dollar sign
    "figure.facecolor": "white",
    "savefig.dpi": DPI,
}
_GREY = "#aab2bb"
_LOG_RATIO = 20  # costs that differ by a larger factor are drawn on a logarithmic scale
_MAX_GROUPS = 30
_MAX_NAMED_CLASSES = 60
_MAX_COUNTED_CLASSES = 25
_MAX_NAME = 26  # characters


def curves_figure(
    ranked: Sequence[RankedTrial], metrics: Sequence[str], *, colour_by: str, is_share: Mapping[str, bool]
) -> bytes:
    """Draw every trial's metrics over its epochs, one panel per metric, the best trial in bold.

    Args:
        ranked: Trials, best first.
        metrics: Names of metrics; those that no trial has are left out.
        colour_by: Setting that decides the colour; each of its values has its own.
        is_share: Metric -> whether it is a share, shown in percent; a metric that is absent is not.
    """
    metrics = [m for m in metrics if any(m in epoch.metrics for row in ranked for epoch in row.result.history)]
    colours = _colours([row.result.settings.get(colour_by) for row in ranked])
    with _figure(10.6, 4.1) as figure:
        panels = figure.subplots(1, max(1, len(metrics)), squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=False):
            axes.set(title=metric, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if is_share.get(metric, False):
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            for row in reversed(ranked):
                _curve(axes, row, metric, colours[str(row.result.settings.get(colour_by))])
        handles = [mpl.lines.Line2D([], [], color=colour, lw=2.2) for colour in colours.values()]
        names = [_shorten(name) for name in colours]
        figure.legend(handles, names, title=f"{colour_by} (bold: best trial)", loc="outside lower center", ncols=4)
        return _png(figure)


def settings_figure(groups: Sequence[SeedGroup], objective: str, *, colour_by: str, is_share: bool) -> bytes:
    """Draw the score of every group of settings: a dot per seed with its interval, and a bar at their mean.

    Args:
        groups: Groups, best first; the first 30 are drawn.
        objective: Name of the score.
        colour_by: Setting that decides the colour; each of its values has its own.
        is_share: Whether the score is a share, shown in percent.
    """
    groups = groups[:_MAX_GROUPS]
    colours = _colours([group.trials[0].result.settings.get(colour_by) for group in groups])
    with _figure(9.2, 1.1 + 0.42 * len(groups)) as figure:
        axes = figure.subplots()
        for place, group in enumerate(groups):
            colour = colours[str(group.trials[0].result.settings.get(colour_by))]
            axes.plot(
                [group.mean] * 2, [place - 0.34, place + 0.34], color=colour, lw=7, alpha=0.3, solid_capstyle="butt"
            )
            offsets = (np.arange(len(group.trials)) + 0.5) / len(group.trials) * 0.56 - 0.28
            for row, offset in zip(group.trials, offsets, strict=True):
                _dot(axes, row, place + float(offset), colour)
        names = [_shorten(describe_settings(group.settings) or "all trials", 48) for group in groups]
        axes.set_yticks(range(len(groups)), names)
        axes.set(xlabel=objective, ylim=(len(groups) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
        if is_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return _png(figure)


def confusion_figure(confusion: Int[np.ndarray, "C C"], class_names: Sequence[str]) -> bytes:
    """Draw a confusion matrix, rows as shares of the true class.

    Cells show counts for up to 25 classes. Axes show names for up to 60 classes, and every fifth number for more.
    """
    num_classes = len(confusion)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    side = float(np.clip(0.36 * num_classes, 2.6, 8.0))
    with _figure(side + 2.4, side + 1.8) as figure:
        axes = figure.subplots()
        is_large = num_classes > _MAX_COUNTED_CLASSES
        # Small cells show no count, so a steeper scale makes a rare confusion visible.
        norm = PowerNorm(0.4 if is_large else 1.0, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
        step = 1 if num_classes <= _MAX_NAMED_CLASSES else 5
        size = float(np.clip(side * 72 / num_classes * 0.62 * step, 5.0, 9.0))
        places = range(0, num_classes, step)
        names = [_shorten(class_names[i]) if step == 1 else f"{i}" for i in places]
        axes.set_xticks(places, names, rotation=90, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        if not is_large:
            _write_counts(axes, confusion, shares)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format=PercentFormatter(1.0, decimals=0))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        return _png(figure)


def depth_figure(
    frames: UInt8[np.ndarray, "n H W 3"],
    truth: Float[np.ndarray, "n h w"],
    predicted: Float[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "n h w"],
) -> bytes:
    """Draw frames, their true depth and their predicted depth in three rows; both depths use the same colour scale.

    Args:
        frames: RGB frames.
        truth: True depth in metres.
        predicted: Predicted depth in metres.
        valid: Where the true depth is known; elsewhere the true depth is drawn white.
    """
    known = truth[valid]
    scale = {"cmap": "viridis_r", "vmin": float(known.min()), "vmax": float(known.max())} if known.size else {}
    rows = {"frame": frames, "truth": np.where(valid, truth, np.nan), "prediction": predicted}
    with _figure(1.55 * len(frames) + 0.9, 4.9) as figure:
        panels = figure.subplots(len(rows), len(frames), squeeze=False)
        for line, (name, images) in zip(panels, rows.items(), strict=True):
            for axes, image in zip(line, images, strict=True):
                drawn = axes.imshow(image, interpolation="nearest", **({} if name == "frame" else scale))
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(name)
        bar = figure.colorbar(drawn, ax=panels[1:], fraction=0.03, pad=0.01)
        bar.set_label("metres")
        bar.outline.set_visible(False)
        return _png(figure)


def ways_figure(
    ways: Sequence[tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, "T 3"]]], titles: Sequence[str]
) -> bytes:
    """Draw the paths of cameras, seen from above, one panel per clip.

    Args:
        ways: True and predicted positions in metres, axes x right, y down, z forward.
        titles: One per panel.
    """
    columns = min(4, len(ways))
    rows = -(-len(ways) // columns)
    with _figure(2.65 * columns, 2.75 * rows + 0.5) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (truth, predicted), title in zip(panels, ways, titles, strict=False):
            for (x, _, z), colour, style in zip((truth.T, predicted.T), _COLOURS, ("-", "--"), strict=False):
                axes.plot(x, z, style, color=colour, lw=1.8, marker="o", ms=2.4)
            axes.plot(0, 0, "o", color=_INK, ms=6)
            axes.set(aspect="equal", adjustable="datalim")
            axes.set_title(title, fontsize=9, fontweight="normal")
            axes.margins(0.15)
            axes.tick_params(labelsize=8)
        for axes in panels:
            axes.set_visible(False)
        figure.supxlabel("metres to the right", fontsize=9)
        figure.supylabel("metres forward", fontsize=9)
        lines = [
            mpl.lines.Line2D([], [], color=colour, ls=style, lw=2)
            for colour, style in zip(_COLOURS, ("-", "--"), strict=False)
        ]
        start = mpl.lines.Line2D([], [], color=_INK, marker="o", ls="")
        names = ["truth", "prediction, added up", "first frame"]
        figure.legend([*lines, start], names, loc="outside upper center", ncols=3)
        return _png(figure)


def strip_image(frames: UInt8[np.ndarray, "T H W 3"], *, num_frames: int = 8, height: int = 112) -> bytes:
    """Return frames of a clip side by side in time order, as JPEG.

    Args:
        frames: RGB frames.
        num_frames: Maximum number of frames to show, spread evenly from the first to the last.
        height: Height of the strip in pixels.
    """
    count = min(num_frames, len(frames))
    picked = frames[spread(len(frames), num_frames)]
    width = max(1, round(height * frames.shape[2] / frames.shape[1]))
    gap = 3
    strip = Image.new("RGB", (count * (width + gap) - gap, height), "white")
    for place, frame in enumerate(picked):
        strip.paste(
            Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS), (place * (width + gap), 0)
        )
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def pareto_figure(section: ParetoSection, *, is_share: bool) -> bytes:
    """Draw score against each cost, a row per core: the front in colour, dominated sets grey, random sets as crosses.

    Args:
        section: Points of one task.
        is_share: Whether the score is a share, shown in percent.
    """
    cores = list(dict.fromkeys(point.core for point in section.points))
    with _figure(12.6, 3.3 * len(cores) + 0.6) as figure:
        panels = figure.subplots(len(cores), len(AXES), squeeze=False, sharey="row", sharex="col")
        for line, core in zip(panels, cores, strict=True):
            for axes, axis in zip(line, AXES, strict=True):
                _front(axes, [point for point in section.points if point.core == core], axis)
                if is_share:
                    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            line[0].set(title=core, ylabel=section.objective)
        for axes, label in zip(panels[-1], AXES.values(), strict=True):
            axes.set_xlabel(label)
        panels[-1][-1].xaxis.set_major_formatter(EngFormatter(unit="B"))
        marks = {"on the front": ("o", _COLOURS[0]), "dominated": ("o", _GREY), "chance": ("X", _COLOURS[1])}
        handles = [mpl.lines.Line2D([], [], marker=mark, color=colour, ls="") for mark, colour in marks.values()]
        figure.legend(handles, list(marks), loc="outside lower center", ncols=len(marks))
        return _png(figure)


def png_width(png: bytes) -> int:
    """Return the width of a PNG in pixels."""
    return Image.open(io.BytesIO(png)).width


def _curve(axes: Axes, row: RankedTrial, metric: str, colour: str) -> None:
    points = [(epoch.epoch, epoch.metrics[metric]) for epoch in row.result.history if metric in epoch.metrics]
    if points:
        marker = "o" if len(points) == 1 else None
        width, alpha = (2.4, 1.0) if row.is_best else (1.1, 0.65)
        axes.plot(*zip(*points, strict=True), color=colour, lw=width, alpha=alpha, marker=marker, ms=3)


def _dot(axes: Axes, row: RankedTrial, height: float, colour: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [height, height], color=colour, lw=1.1, alpha=0.55)
    if row.score is not None:
        axes.plot(row.score, height, "o", color=colour, ms=4.5, mec="white", mew=0.6)


def _write_counts(axes: Axes, confusion: Int[np.ndarray, "C C"], shares: np.ndarray) -> None:
    for i, j in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[i, j] > 0.55 else _INK
        axes.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=8, color=colour)


def _colours(values: Sequence[object]) -> dict[str, str]:
    """Give every value a colour, in the order of their names, so that all versions of a page use the same colours."""
    names = sorted({str(value) for value in values})
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}


def _shorten(name: str, width: int = _MAX_NAME) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure in the report's style, not in pyplot's global list; width and height are in inches."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the tables beside the picture show the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def _front(axes: Axes, points: Sequence[ParetoPoint], axis: Axis) -> None:
    """Draw the points of one core against one cost; points on the front have names."""
    known = [(cost, point) for point in points if (cost := point.at(axis)) is not None]
    front = sorted((cost, point.mean, point.cost.name) for cost, point in known if axis in point.fronts)
    if front:
        axes.plot([x for x, _, _ in front], [y for _, y, _ in front], color=_COLOURS[0], lw=1.2, alpha=0.5)
    for cost, point in known:
        is_random = point.cost.is_random
        colour = _COLOURS[1] if is_random else _COLOURS[0] if axis in point.fronts else _GREY
        if point.low is not None and point.high is not None:
            axes.plot([cost, cost], [point.low, point.high], color=colour, lw=0.9, alpha=0.4)
        axes.plot(cost, point.mean, "X" if is_random else "o", color=colour, ms=6.5, mec="white", mew=0.6)
    for place, (x, y, name) in enumerate(front):
        # Names are alternately above and below, because neighbours on a front are close.
        offset, side = ((5, 6), "bottom") if place % 2 else ((5, -6), "top")
        axes.annotate(_shorten(name), (x, y), offset, textcoords="offset points", va=side, fontsize=7.5)
    if len(known) > 1 and max(cost for cost, _ in known) > _LOG_RATIO * min(cost for cost, _ in known) > 0:
        axes.set_xscale("log")
    axes.margins(x=0.2)
