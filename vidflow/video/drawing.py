"""Draw predictions on frames: class names, boxes, tracks of points, and depth beside the frame.

Axes: H and W pixels, 3 the channels red, green, blue.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "H W 3"]

# Frames are scaled to a height in this range, in pixels, so that text can be read.
_MIN_HEIGHT, _MAX_HEIGHT = 240, 720
_BAR_HEIGHT = 30
_TEXT_SIZE = 15
_BACKGROUND, _TEXT, _FILL = (24, 24, 27), (244, 244, 245), (37, 99, 235)
# Colours of tracked boxes and points, in turn. People with any kind of colour vision can tell them apart.
# Source: Okabe and Ito 2008, Color Universal Design.
_COLOURS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167)]
# From near (light) to far (dark), so that depth can be read without colour.
_DEPTH_COLOURS = np.array([(255, 247, 188), (254, 153, 41), (204, 76, 2), (82, 28, 120), (10, 8, 40)], dtype=np.float64)


def draw_prediction(
    frame: Picture, rows: Sequence[dict[str, Any]], *, depth: Float[np.ndarray, "h w"] | None = None
) -> Picture:
    """Draw the prediction for a frame; both sides of the result are even.

    Args:
        frame: The frame.
        rows: Predictions of `VideoPredictor` for the frames up to this one, which is last. The earlier ones make the
            tracks of points.
        depth: Depth of the central square in metres, shown beside the frame.
    """
    scale = float(np.clip(frame.shape[0], _MIN_HEIGHT, _MAX_HEIGHT)) / frame.shape[0]
    height, width = (round(side * scale / 2) * 2 for side in frame.shape[:2])
    canvas = Image.new("RGB", (width + (0 if depth is None else height), height + _BAR_HEIGHT), _BACKGROUND)
    canvas.paste(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height)), (0, 0))
    if depth is not None:
        canvas.paste(Image.fromarray(colour_depth(depth)).resize((height, height)), (width, 0))
    draw = ImageDraw.Draw(canvas)
    _draw_boxes(draw, rows[-1].get("boxes", []), scale)
    _draw_tracks(draw, rows, scale)
    _draw_bar(draw, rows[-1], top=height, width=canvas.width)
    return np.asarray(canvas)


def colour_depth(depth: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return depth as colours, the nearest pixel of the frame light and the farthest dark."""
    span = float(depth.max() - depth.min()) or 1.0
    position = (depth - depth.min()) / span * (len(_DEPTH_COLOURS) - 1)
    channels = [np.interp(position, np.arange(len(_DEPTH_COLOURS)), channel) for channel in _DEPTH_COLOURS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _draw_boxes(draw: ImageDraw.ImageDraw, boxes: Sequence[Sequence[float]], scale: float) -> None:
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        # An untrained head may predict corners in the wrong order, which Pillow refuses.
        corners = [min(x0, x1) * scale, min(y0, y1) * scale, max(x0, x1) * scale, max(y0, y1) * scale]
        draw.rectangle(corners, outline=_colour(number), width=3)
        draw.text((corners[0] + 5, corners[1] + 3), str(number), fill=_colour(number), font=_font())


def _draw_tracks(draw: ImageDraw.ImageDraw, rows: Sequence[dict[str, Any]], scale: float) -> None:
    """Draw points with a trail: filled if predicted visible, hollow if predicted hidden."""
    for number, point in enumerate(rows[-1].get("points", [])):
        past = [row["points"][number] for row in rows if len(row["points"]) > number]
        trail = [(where["x"] * scale, where["y"] * scale) for where in past]
        if len(trail) > 1:
            draw.line(trail, fill=_colour(number), width=2)
        fill = _colour(number) if point["visible"] else None
        draw.circle((point["x"] * scale, point["y"] * scale), 5, fill=fill, outline=_colour(number), width=2)


def _draw_bar(draw: ImageDraw.ImageDraw, row: dict[str, Any], *, top: int, width: int) -> None:
    """Write the prediction below the frame; the bar behind a class is as long as its probability."""
    if "classes" in row:
        best = row["classes"][0]
        draw.rectangle([0, top, width * best["probability"], top + _BAR_HEIGHT], fill=_FILL)
    draw.text((8, top + _BAR_HEIGHT // 2), caption(row), fill=_TEXT, font=_font(), anchor="lm")


def caption(row: dict[str, Any]) -> str:
    """Return the prediction as one line of text."""
    when = f"{row['pts_seconds']:.2f} s"
    if "classes" in row:
        best = row["classes"][0]
        return f"{best['name']}  {best['probability']:.0%}   {when}"
    if "depth" in row:
        depth = row["depth"]
        return f"{depth['min_metres']:.2f} to {depth['max_metres']:.2f} m   {when}"
    if row.get("camera_motion"):
        x, y, z = row["camera_motion"]["translation_metres"]
        return f"camera moved {x:+.3f} {y:+.3f} {z:+.3f} m   {when}"
    return when


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[number % len(_COLOURS)]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_SIZE)
