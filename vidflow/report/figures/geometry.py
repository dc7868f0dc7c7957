"""Figures of dense predictions: depth maps, and the paths of cameras.

Axes: T frames, n pictured frames, H and W pixels.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vidflow.report.figures.canvas import LIGHT, Look, open_figure, to_png
from vidflow.spread import spread

_NARROW_FRAMES = 3


def depth_figure(
    frames: UInt8[np.ndarray, "n H W 3"],
    truth: Float[np.ndarray, "n h w"],
    predicted: Float[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "n h w"],
    *,
    look: Look = LIGHT,
) -> bytes:
    """Draw frames, their true depth and their predicted depth in three rows; both depths use the same colour scale.

    Args:
        frames: RGB frames; a narrow figure shows three of them.
        truth: True depth in metres.
        predicted: Predicted depth in metres.
        valid: Where the true depth is known; elsewhere the true depth has the colour of the ground.
        look: Light or dark, wide or narrow.
    """
    known = truth[valid]
    scale = {"cmap": "viridis_r", "vmin": float(known.min()), "vmax": float(known.max())} if known.size else {}
    shown = spread(len(frames), _NARROW_FRAMES if look.is_narrow else len(frames))
    rows = {
        "frame": frames[shown],
        "truth": np.where(valid, truth, np.nan)[shown],
        "prediction": predicted[shown],
    }
    with open_figure(1.55 * len(frames) + 0.9, 3.6 if look.is_narrow else 4.9, look) as figure:
        panels = figure.subplots(len(rows), len(shown), squeeze=False)
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
        return to_png(figure)


def ways_figure(
    ways: Sequence[tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, "T 3"]]],
    titles: Sequence[str],
    *,
    look: Look = LIGHT,
) -> bytes:
    """Draw the paths of cameras, seen from above, one panel per clip.

    Args:
        ways: True and predicted positions in metres, axes x right, y down, z forward.
        titles: One per panel.
        look: Light or dark, wide or narrow.
    """
    columns = min(2 if look.is_narrow else 4, len(ways))
    rows = -(-len(ways) // columns)
    with open_figure(2.65 * columns, (1.75 if look.is_narrow else 2.75) * rows + 0.5, look) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (truth, predicted), title in zip(panels, ways, titles, strict=False):
            for (x, _, z), colour, style in zip((truth.T, predicted.T), look.colours, ("-", "--"), strict=False):
                axes.plot(x, z, style, color=colour, lw=1.8, marker="o", ms=2.4)
            axes.plot(0, 0, "o", color=look.ink, ms=6)
            axes.set(aspect="equal", adjustable="datalim")
            axes.set_title(title, fontsize=8 if look.is_narrow else 9, fontweight="normal")
            axes.margins(0.15)
            axes.tick_params(labelsize=7 if look.is_narrow else 8)
        for axes in panels:
            axes.set_visible(False)
        figure.supxlabel("metres to the right", fontsize=9)
        figure.supylabel("metres forward", fontsize=9)
        lines = [
            mpl.lines.Line2D([], [], color=colour, ls=style, lw=2)
            for colour, style in zip(look.colours, ("-", "--"), strict=False)
        ]
        start = mpl.lines.Line2D([], [], color=look.ink, marker="o", ls="")
        names = ["truth", "prediction, added up", "first frame"]
        figure.legend([*lines, start], names, loc="outside upper center", ncols=1 if look.is_narrow else 3)
        return to_png(figure)
