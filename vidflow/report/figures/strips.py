"""Frames of a clip side by side.

Axes: T frames, n shown frames, H and W pixels.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vidflow.report.figures.canvas import LIGHT, Drawing, Look
from vidflow.spread import spread

_GAP = 3
_GAP_COLOUR = "#868f98"  # between the grounds of light and dark pages
_NARROW_COLUMNS = 4
_NARROW_HEIGHT = 84


def strip_image(
    frames: UInt8[np.ndarray, "T H W 3"], *, num_frames: int = 8, height: int = 112, columns: int | None = None
) -> bytes:
    """Return frames of a clip side by side in time order, as JPEG.

    Args:
        frames: RGB frames.
        num_frames: Maximum number of frames to show, spread evenly from the first to the last.
        height: Height of a frame in pixels.
        columns: Frames of a row; None is one row.
    """
    picked = frames[spread(len(frames), num_frames)]
    width = max(1, round(height * frames.shape[2] / frames.shape[1]))
    across = min(columns or len(picked), len(picked))
    down = -(-len(picked) // across)
    size = (across * (width + _GAP) - _GAP, down * (height + _GAP) - _GAP)
    strip = Image.new("RGB", size, _GAP_COLOUR)
    for place, frame in enumerate(picked):
        cell = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        strip.paste(cell, (place % across * (width + _GAP), place // across * (height + _GAP)))
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def strip_drawing(frames: UInt8[np.ndarray, "T H W 3"]) -> Drawing:
    """Return a strip for wide pages in one row, and for narrow ones in rows of four."""
    narrow = strip_image(frames, columns=_NARROW_COLUMNS, height=_NARROW_HEIGHT)
    return {LIGHT: strip_image(frames), Look(is_narrow=True): narrow}
