"""The ground of every figure: its look for light or dark pages, wide or narrow, its style, and its bytes."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

DPI = 180
"""Pixels per inch of every figure; the page shows figures at their size in inches, so all text has the same size."""
NARROW_INCHES = 3.45
"""Width of a figure on a telephone of 390 pixels, whose page and card take the rest."""
_MAX_NAME = 26  # characters


@dataclass(frozen=True, slots=True)
class Look:
    """How one version of a figure is drawn.

    Attributes:
        is_dark: Whether it stands on a dark page; its ground is the page's, so that it has no frame.
        is_narrow: Whether it must be readable in the width of a telephone.
    """

    is_dark: bool = False
    is_narrow: bool = False

    @property
    def ground(self) -> str:
        """Colour behind the figure; equal to `--card` of the page."""
        return "#1c2228" if self.is_dark else "#ffffff"

    @property
    def ink(self) -> str:
        """Colour of text."""
        return "#e4e8ec" if self.is_dark else "#26303a"

    @property
    def grey(self) -> str:
        """Colour of what matters less."""
        return "#7d8995" if self.is_dark else "#aab2bb"

    @property
    def colours(self) -> tuple[str, ...]:
        """Okabe and Ito's colours, which colour-blind readers can distinguish.

        Those too light for a thin line on white, or too dark for one on a dark ground, are adjusted.
        """
        if self.is_dark:
            return ("#56b4e9", "#ff9d5c", "#35c498", "#e08bc0", "#d6b84a", "#8fd0f5", "#c4c9ce", "#e8816f")
        return ("#0072b2", "#d55e00", "#009e73", "#b1548a", "#8c6d00", "#3d9bd1", "#4d4d4d", "#9a3324")

    @property
    def shares(self) -> Colormap:
        """Scale of shares from 0, the ground, to 1."""
        if self.is_dark:
            return LinearSegmentedColormap.from_list("shares", [self.ground, "#2c5a78", "#8fd0f5"])
        return mpl.colormaps["Blues"]

    @property
    def style(self) -> dict[Any, Any]:
        """Settings of matplotlib."""
        return {
            "font.family": ["DejaVu Sans"],
            "font.size": 9 if self.is_narrow else 10,
            "axes.titlesize": 10 if self.is_narrow else 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.facecolor": self.ground,
            "axes.edgecolor": self.grey,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#38424c" if self.is_dark else "#d9dee3",
            "grid.linewidth": 0.6,
            "xtick.color": self.ink,
            "ytick.color": self.ink,
            "legend.frameon": False,
            "text.color": self.ink,
            "text.parse_math": False,  # class names come from the user and may contain a dollar sign
            "figure.facecolor": self.ground,
            "savefig.facecolor": self.ground,
            "savefig.dpi": DPI,
        }


LIGHT = Look()
LOOKS = (LIGHT, Look(is_dark=True), Look(is_narrow=True), Look(is_dark=True, is_narrow=True))
Drawing = Mapping[Look, bytes]
"""One figure in each of its looks; the page shows the one that fits the reader's screen."""


def draw_all(draw: Callable[[Look], bytes], *, has_photos: bool = False) -> Drawing:
    """Draw a figure in every look; without photographs, as PNG with a palette."""
    return {look: draw(look) if has_photos else _pack(draw(look)) for look in LOOKS}


def name_colours(values: Sequence[object], look: Look) -> dict[str, str]:
    """Give every value a colour, in the order of their names, so that all versions of a page use the same colours."""
    names = sorted({str(value) for value in values})
    return {name: look.colours[place % len(look.colours)] for place, name in enumerate(names)}


def shorten(name: str, width: int = _MAX_NAME) -> str:
    """Cut a name that is too long for a figure."""
    return name if len(name) <= width else name[: width - 1] + "…"


@contextmanager
def open_figure(width: float, height: float, look: Look) -> Iterator[Figure]:
    """Yield an empty figure, not in pyplot's global list; width and height are in inches."""
    with mpl.rc_context(look.style), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the tables beside the picture show the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(NARROW_INCHES if look.is_narrow else width, height), layout="constrained")


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def _pack(png: bytes) -> bytes:
    """Return a PNG with a palette, which takes a third of the bytes."""
    plain, packed = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    plain.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def png_width(png: bytes) -> int:
    """Return the width of a PNG in pixels."""
    return Image.open(io.BytesIO(png)).width
