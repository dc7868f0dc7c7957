"""Pictures of the predictions of tasks other than classification, drawn with the truth.

Axes: T frames, n pictured frames, H and W pixels, O boxes, Q points.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from vidflow.config.tasks import Prediction, TaskName, facts_of
from vidflow.models.tasks import build_metric
from vidflow.models.tasks.coordinates import rotation_matrix
from vidflow.models.tasks.metrics.depth import valid_depth
from vidflow.models.tasks.metrics.point_tracking import claimed_visible
from vidflow.report.figures import DPI, LIGHT, Drawing, Look, depth_figure, draw_all, ways_figure
from vidflow.report.results import Pictured
from vidflow.spread import spread
from vidflow.training.batches import read_annotations
from vidflow.training.feeds import Clips

# People with any kind of colour vision can distinguish green and magenta, and both are rare in videos.
TRUTH, PREDICTION = "#3dff5a", "#ff3df2"
OVER_FRAMES: tuple[Prediction, ...] = ("boxes", "points")
"""Predictions that are drawn over frames, in these two colours."""
_SHADOW = "black"
_NUM_FRAMES = 6
_SIDE = 330
"""Height of a frame in a strip, in pixels; a page shows it at half that size, so that lines are smooth."""
_GAP = 6
_GAP_COLOUR = "#868f98"  # between the grounds of light and dark pages
_NARROW_COLUMNS = 3
_MAX_POINTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A drawing of predictions on one or several clips, with the truth.

    Attributes:
        content: The drawing for each kind of page.
        kind: `png` or `jpeg`.
        scale: Pixels of the picture per pixel of a page.
        caption: How well the clip was predicted; empty if the picture shows it.
        key: The clip's content key; empty for several clips.
    """

    content: Drawing
    kind: Literal["png", "jpeg"]
    scale: float
    caption: str = ""
    key: str = ""


def draw_clips(
    task: TaskName,
    pictured: Pictured,
    reader: Clips,
    frames_of: Callable[[str], UInt8[np.ndarray, "T H W 3"]],
    *,
    objective: str,
    num_clips: int,
) -> list[Picture]:
    """Draw the first clips of the validation split, without selection.

    Args:
        task: What was predicted.
        pictured: Predictions.
        reader: The feature set they were made from, which holds the truth.
        frames_of: Gives a clip's frames by its key.
        objective: Metric of the captions, such as `val/miou`.
        num_clips: Maximum number of clips to draw.
    """
    facts, clips = facts_of(task), []
    assert facts.predicts != "tokens", "hidden tokens are not drawn"
    for row, index in enumerate(pictured.indices[:num_clips]):
        arrays = read_annotations(reader[int(index)], facts.annotations)
        truth = {name: torch.from_numpy(array) for name, array in arrays.items()}
        # Remove the objects that only pad a batch.
        num_objects = len(truth[facts.predicts])
        answers = {name: answer[row, :num_objects] for name, answer in pictured.answers.items()}
        clips.append((reader.keys[index], truth, answers))
    scores = [_describe(task, answers, truth, objective) for _, truth, answers in clips]
    if facts.predicts == "camera_motion":
        ways = [(_way(truth["camera_motion"]), _way(answers["camera_motion"])) for _, truth, answers in clips]
        drawing = draw_all(lambda look: ways_figure(ways, scores, look=look)) if clips else {}
        return [Picture(content=drawing, kind="png", scale=DPI / 96)] if clips else []
    return [
        _draw(facts.predicts, frames_of(key), truth, answers, key=key, caption=score)
        for (key, truth, answers), score in zip(clips, scores, strict=True)
    ]


def explain_pictures(predicts: Prediction) -> str:
    """Return how to read the pictures of a prediction; empty if they need no explanation."""
    match predicts:
        case "points":
            return "A hollow dot is out of sight, or said to be; a line ties each prediction to its truth."
        case "depth":
            return "Truth and prediction share one scale."
        case "camera_motion":
            return "Seen from above; predicted motions are added up from frame to frame, and so are their errors."
        case "classes" | "boxes" | "tokens":
            return ""
        case _:
            assert_never(predicts)


def draw_boxes(
    frames: UInt8[np.ndarray, "T H W 3"],
    truth: Float[np.ndarray, "O T 4"],
    visible: Bool[np.ndarray, "O T"],
    predicted: Float[np.ndarray, "O T 4"],
    *,
    columns: int = _NUM_FRAMES,
) -> bytes:
    """Draw boxes over some frames, side by side, as JPEG: true boxes if they are visible, and predicted boxes.

    Args:
        frames: RGB frames.
        truth: Corners of the true boxes in [0, 1].
        visible: Where the truth is known; a track is predicted from its first visible frame on.
        predicted: Corners of the predicted boxes in [0, 1].
        columns: Frames of a row.
    """
    cells = []
    started = np.maximum.accumulate(visible, axis=1)
    for t in spread(len(frames), _NUM_FRAMES):
        cell, draw = _enlarge(frames[t])
        for number in range(len(truth)):
            if visible[number, t]:
                _rectangle(draw, truth[number, t], cell.size, TRUTH)
            if started[number, t]:
                _rectangle(draw, predicted[number, t], cell.size, PREDICTION)
        cells.append(cell)
    return _strip(cells, columns)


def draw_tracks(
    frames: UInt8[np.ndarray, "T H W 3"],
    truth: Float[np.ndarray, "Q T 2"],
    visible: Bool[np.ndarray, "Q T"],
    predicted: Float[np.ndarray, "Q T 2"],
    claimed: Bool[np.ndarray, "Q T"],
    *,
    columns: int = _NUM_FRAMES,
) -> bytes:
    """Draw points over some frames, side by side, as JPEG; a line joins prediction and truth; hidden points are hollow.

    Args:
        frames: RGB frames.
        truth: True x and y in [0, 1].
        visible: Whether the true point is visible.
        predicted: Predicted x and y in [0, 1].
        claimed: Whether the point is predicted to be visible.
        columns: Frames of a row.
    """
    cells = []
    for t in spread(len(frames), _NUM_FRAMES):
        cell, draw = _enlarge(frames[t])
        for q in spread(len(truth), _MAX_POINTS):
            ends = [tuple(map(float, point * cell.size)) for point in (truth[q, t], predicted[q, t])]
            draw.line(ends, fill=_SHADOW, width=5)
            draw.line(ends, fill="white", width=2)
            _dot(draw, ends[0], TRUTH, is_filled=bool(visible[q, t]))
            _dot(draw, ends[1], PREDICTION, is_filled=bool(claimed[q, t]))
        cells.append(cell)
    return _strip(cells, columns)


def _way(motion: Float[Tensor, "T 9"]) -> Float[np.ndarray, "T 3"]:
    """Add up the motions between frames and return positions in the first camera's coordinates, in metres."""
    pose, positions = torch.eye(4, dtype=torch.float64), [torch.zeros(3, dtype=torch.float64)]
    for step in motion[1:].double():
        delta = torch.eye(4, dtype=torch.float64)
        delta[:3, :3], delta[:3, 3] = rotation_matrix(step[3:]), step[:3]
        pose = pose @ delta
        positions.append(pose[:3, 3])
    return torch.stack(positions).numpy()


def _draw(
    predicts: Literal["classes", "boxes", "points", "depth"],
    frames: UInt8[np.ndarray, "T H W 3"],
    truth: dict[str, Tensor],
    answers: dict[str, Tensor],
    *,
    key: str,
    caption: str,
) -> Picture:
    match predicts:
        case "classes":
            raise AssertionError("a classifier's clips are shown as examples")
        case "boxes":
            strip = _for_both(
                functools.partial(
                    draw_boxes, frames, truth["boxes"].numpy(), truth["boxes_visible"].numpy(), answers["boxes"].numpy()
                )
            )
            return Picture(content=strip, kind="jpeg", scale=2, caption=caption, key=key)
        case "points":
            strip = _for_both(
                functools.partial(
                    draw_tracks,
                    frames,
                    truth["points"].numpy(),
                    truth["points_visible"].numpy(),
                    answers["points"].numpy(),
                    claimed_visible(answers).numpy(),
                )
            )
            return Picture(content=strip, kind="jpeg", scale=2, caption=caption, key=key)
        case "depth":
            shown = spread(len(frames), _NUM_FRAMES)
            known = valid_depth(truth["depth"][shown])
            true, said = truth["depth"][shown].numpy(), answers["depth"][shown].numpy()
            figure = draw_all(
                lambda look: depth_figure(frames[shown], true, said, known.numpy(), look=look), has_photos=True
            )
            return Picture(content=figure, kind="png", scale=DPI / 96, caption=caption, key=key)
        case _:
            assert_never(predicts)


def _for_both(draw: Callable[..., bytes]) -> Drawing:
    """Draw a strip for wide and for narrow pages; frames have the same colours on light and dark ones."""
    return {LIGHT: draw(), Look(is_narrow=True): draw(columns=_NARROW_COLUMNS)}


def _describe(task: TaskName, answers: dict[str, Tensor], truth: dict[str, Tensor], objective: str) -> str:
    """Return the clip's own score; empty if the clip has nothing that the metric counts."""
    metric = build_metric(task)
    metric.update(*({name: part[None] for name, part in parts.items()} for parts in (answers, truth)))
    try:
        value = metric.compute()[objective.removeprefix("val/")]
    except ValueError:
        return ""
    return f"{objective.removeprefix('val/')} {value:.4g}"


def _enlarge(frame: UInt8[np.ndarray, "H W 3"]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    width = round(_SIDE * frame.shape[1] / frame.shape[0])
    cell = Image.fromarray(frame).resize((width, _SIDE), Image.Resampling.LANCZOS)
    return cell, ImageDraw.Draw(cell)


def _rectangle(draw: ImageDraw.ImageDraw, box: Float[np.ndarray, " 4"], size: tuple[int, int], colour: str) -> None:
    # An untrained head may give corners in the wrong order, which Pillow refuses.
    (left, right), (top, bottom) = (sorted((float(box[i]), float(box[i + 2]))) for i in (0, 1))
    corners = (left * size[0], top * size[1], right * size[0], bottom * size[1])
    draw.rectangle([corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline=_SHADOW, width=6)
    draw.rectangle(corners, outline=colour, width=4)


def _dot(draw: ImageDraw.ImageDraw, center: Sequence[float], colour: str, *, is_filled: bool) -> None:
    draw.circle(center, 9, outline=_SHADOW, width=7)
    draw.circle(center, 8, fill=colour if is_filled else None, outline=colour, width=4)


def _strip(cells: Sequence[Image.Image], columns: int) -> bytes:
    width, height = cells[0].width + _GAP, cells[0].height + _GAP
    across, down = min(columns, len(cells)), -(-len(cells) // columns)
    strip = Image.new("RGB", (across * width - _GAP, down * height - _GAP), _GAP_COLOUR)
    for place, cell in enumerate(cells):
        strip.paste(cell, (place % columns * width, place // columns * height))
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=82, subsampling=0)  # else thin lines lose their colour
    return buffer.getvalue()
