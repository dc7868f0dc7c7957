"""The confusion matrix of a classifier.

Axes: C classes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import PercentFormatter

from vidflow.report.figures.canvas import LIGHT, Look, open_figure, shorten, to_png

_MAX_NAMED_CLASSES = 60
_MAX_COUNTED_CLASSES = 25


def confusion_figure(confusion: Int[np.ndarray, "C C"], class_names: Sequence[str], *, look: Look = LIGHT) -> bytes:
    """Draw a confusion matrix, rows as shares of the true class.

    Cells show counts for up to 25 classes. Axes show names for up to 60 classes, and every fifth number for more.
    A narrow figure has half the room: up to 12 and 30 classes.
    """
    num_classes = len(confusion)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    room = 2 if look.is_narrow else 1
    side = float(np.clip(0.36 * num_classes, 2.6, 2.6 if look.is_narrow else 8.0))
    with open_figure(side + 2.4, side + 1.8 / room, look) as figure:
        axes = figure.subplots()
        is_large = num_classes > _MAX_COUNTED_CLASSES // room
        # Small cells show no count, so a steeper scale makes a rare confusion visible.
        norm = PowerNorm(0.4 if is_large else 1.0, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=look.shares, norm=norm, interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
        step = 1 if num_classes <= _MAX_NAMED_CLASSES // room else 5
        size = float(np.clip(side * 72 / num_classes * 0.62 * step, 5.0, 9.0 - room + 1))
        places = range(0, num_classes, step)
        names = [shorten(class_names[i], 26 // room) if step == 1 else f"{i}" for i in places]
        axes.set_xticks(places, names, rotation=90, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        if not is_large:
            _write_counts(axes, confusion, shares, look)
        if not look.is_narrow:
            bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format=PercentFormatter(1.0, decimals=0))
            bar.set_label("share of the true class")
            bar.outline.set_visible(False)
        return to_png(figure)


def _write_counts(axes: Axes, confusion: Int[np.ndarray, "C C"], shares: np.ndarray, look: Look) -> None:
    for i, j in zip(*np.nonzero(confusion), strict=True):
        colour = look.ground if shares[i, j] > 0.55 else look.ink
        size = 7 if look.is_narrow else 8
        axes.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=size, color=colour)
