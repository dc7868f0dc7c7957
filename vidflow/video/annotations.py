"""Dense ground truth of a clip: the video's annotations at the clip's times, in the coordinates of its crop.

A video's annotations are an `.npz` with one entry per source frame. Only `pts_seconds` is required:

    pts_seconds (F,)              boxes (O,F,4) x0 y0 x1 y1 pixels      boxes_visible (O,F) bool
    depth (F,H,W) metres          points (Q,F,2) x y pixels             points_visible (Q,F) bool
    camera_pose (F,4,4) world from camera, metres, axes x right, y down, z forward
    frame_size (2,) height and width of a frame in the unit of boxes and points; default: the video's pixels

Axes: F source frames, T frames of a clip, O objects, Q points, H and W source pixels, h and w clip pixels.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from vidflow.errors import VideoError
from vidflow.npz import read_npz
from vidflow.video.annotation_checks import VISIBLE, bad_values, misfits, moments_unanswered

# Coordinates are limited to this many sides of the crop.
_MAX_SIDES = 1e6
_NAMES = ("pts_seconds", "depth", "frame_size", "boxes", "points", "camera_pose", *VISIBLE)


def clip_annotations(
    path: Path,
    pts_seconds: Float64[np.ndarray, " T"],
    *,
    source_height: int,
    source_width: int,
    size: int,
) -> bytes:
    """Return the ground truth of a clip as `.npz` bytes; the same arguments give the same bytes.

    Coordinates become fractions of the square crop: 0 and 1 are its edges. Boxes are clipped to the crop. Points
    outside keep their coordinates and are not visible. Objects that are not visible in the clip's first frame, and
    points that are never visible, are left out. Depth is sampled at the nearest pixel; 0 means unknown.

    Args:
        path: The video's annotations.
        pts_seconds: Times of the clip's frames; each gets the annotations of the nearest source frame.
        source_height: Displayed height of the video, in pixels.
        source_width: Displayed width of the video, in pixels.
        size: Side of the crop, in pixels.

    Returns:
        Some of `boxes` (O,T,4), `boxes_visible` (O,T), `points` (Q,T,2), `points_visible` (Q,T), `query_frames`
        (Q,) (first frame that sees the point), `depth` (T,h,w) float16 and `camera_motion` (T,9): translation in
        metres and the first two columns of the rotation from each frame's camera to the one before; zero for the first.

    Raises:
        VideoError: `Annotations` if the file is missing, damaged or not such an archive, or if its arrays have wrong
            shapes or impossible values; `Unreadable` if the disk or the permissions prevent reading.
    """
    source = _read_arrays(path)
    moments = source["pts_seconds"].astype(np.float64)
    frames = _find_nearest(moments, pts_seconds)
    _raise_problems(path, moments_unanswered(moments, frames, pts_seconds))
    frame_size = source.get("frame_size", np.array([source_height, source_width]))
    truth = _select_frames(source, frames) | {"frame_size": frame_size}
    _raise_problems(path, bad_values(truth, frames, source_height=source_height, source_width=source_width))
    crop = _Crop(source_height, source_width, frame_size)
    clip: dict[str, np.ndarray] = {}
    if "boxes" in truth:
        clip |= _crop_boxes(truth, crop)
    if "points" in truth:
        clip |= _crop_points(truth, crop)
    if "depth" in truth:
        rows, columns = crop.pixels(truth["depth"].shape[1:], size)
        clip["depth"] = truth["depth"][:, rows[:, None], columns].astype(np.float16)
    if "camera_pose" in truth:
        clip["camera_motion"] = camera_motion(truth["camera_pose"].astype(np.float64))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **clip)
    return buffer.getvalue()


def camera_motion(poses: Float64[np.ndarray, "T 4 4"]) -> Float32[np.ndarray, "T 9"]:
    """Return each frame's pose relative to the frame before: translation, then two columns of the rotation."""
    motion = np.zeros((len(poses), 9), np.float32)
    delta = np.linalg.inv(poses[:-1]) @ poses[1:]
    motion[1:, :3] = delta[:, :3, 3]
    motion[1:, 3:] = delta[:, :3, :2].transpose(0, 2, 1).reshape(-1, 6)
    return motion


class _Crop:
    """The central square of a frame, in fractions of its side."""

    def __init__(self, height: int, width: int, frame_size: Float[np.ndarray, " 2"]) -> None:
        self.side = min(height, width)
        self.unit = np.array([width, height]) / frame_size[::-1]
        self.origin = np.array([(width - self.side) / 2, (height - self.side) / 2])

    def place(self, xy: Float[np.ndarray, "*shape 2"]) -> Float32[np.ndarray, "*shape 2"]:
        """Convert source coordinates to fractions of the crop; infinite coordinates of hidden things become finite."""
        with np.errstate(all="ignore"):
            exact = (xy * self.unit - self.origin) / self.side
        placed: Float32[np.ndarray, "*shape 2"] = np.nan_to_num(exact).clip(-_MAX_SIDES, _MAX_SIDES).astype(np.float32)
        return placed

    def pixels(self, shape: tuple[int, int], size: int) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
        """Return the rows and columns of a depth map at the centres of the crop's pixels."""
        height, width = shape
        scale = min(height, width) / self.side
        middles = (np.arange(size) + 0.5) / size * self.side
        rows, columns = (self.origin[1] + middles) * scale, (self.origin[0] + middles) * scale
        return rows.astype(int).clip(0, height - 1), columns.astype(int).clip(0, width - 1)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the known arrays and check their shapes."""
    try:
        source = read_npz(path, _NAMES.__contains__)
    except FileNotFoundError as error:
        raise VideoError("Annotations", f"{path}: no such file; correct the manifest's `annotations`") from error
    except OSError as error:
        # The file may be fine, so it is tried again later.
        raise VideoError("Unreadable", f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise VideoError("Annotations", f"{path}: {error}") from error
    _raise_problems(path, misfits(source))
    return source


def _raise_problems(path: Path, problems: Iterable[str]) -> None:
    if listed := "; ".join(problems):
        raise VideoError("Annotations", f"{path}: {listed}")


def _find_nearest(moments: Float64[np.ndarray, " F"], pts_seconds: Float64[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """Return the index of the annotated frame nearest to each time; the earlier one if two are equally near."""
    after = np.searchsorted(moments, pts_seconds).clip(0, len(moments) - 1)
    before = (after - 1).clip(0)
    return np.where(pts_seconds - moments[before] <= np.abs(moments[after] - pts_seconds), before, after)


def _select_frames(source: dict[str, np.ndarray], frames: Int[np.ndarray, " T"]) -> dict[str, np.ndarray]:
    """Return the annotations of some frames."""
    per_object = {name: source[name][:, frames] for name in ("boxes", "points", *VISIBLE) if name in source}
    return per_object | {name: source[name][frames] for name in ("depth", "camera_pose") if name in source}


def _crop_boxes(truth: dict[str, np.ndarray], crop: _Crop) -> dict[str, np.ndarray]:
    corners = crop.place(truth["boxes"].reshape(*truth["boxes"].shape[:2], 2, 2)).clip(0, 1)
    has_area = (corners[:, :, 1] > corners[:, :, 0]).all(axis=-1)
    visible = truth["boxes_visible"].astype(bool) & has_area
    kept = visible[:, 0]
    return {"boxes": corners.reshape(*corners.shape[:2], 4)[kept], "boxes_visible": visible[kept]}


def _crop_points(truth: dict[str, np.ndarray], crop: _Crop) -> dict[str, np.ndarray]:
    points = crop.place(truth["points"])
    visible = truth["points_visible"].astype(bool) & ((points >= 0) & (points < 1)).all(axis=-1)
    kept = visible.any(axis=1)
    return {
        "points": points[kept],
        "points_visible": visible[kept],
        "query_frames": visible[kept].argmax(axis=1),
    }
