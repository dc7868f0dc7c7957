"""Dense ground truth of a clip: that of a video, at the clip's moments and in its crop.

A video's annotations are an `.npz` beside it, one entry per source frame; all but `pts_seconds` may be absent:

    pts_seconds (F,)              boxes (O,F,4) x0 y0 x1 y1 pixels      boxes_visible (O,F) bool
    depth (F,H,W) metres          points (Q,F,2) x y pixels             points_visible (Q,F) bool
    camera_pose (F,4,4) world from camera, metres, axes x right, y down, z forward
    frame_size (2,) height and width of a frame where boxes and points count in another unit than the video's pixels

Axes: F source frames, T frames of a clip, O objects, Q points, H and W source pixels, h and w clip pixels.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from vidflow.errors import VideoError

_WANTED_ENDS = {"boxes": ("F", 4), "points": ("F", 2), "camera_pose": ("F", 4, 4)}
# A rotation's is 1; below this a pose is no motion of a rigid camera.
_LEAST_DETERMINANT = 0.5
_NUMBERS = "biuf"
_VISIBLE = ("boxes_visible", "points_visible")
_NAMES = ("pts_seconds", "depth", "frame_size", *_WANTED_ENDS, *_VISIBLE)


def clip_annotations(
    path: Path,
    pts_seconds: Float64[np.ndarray, " T"],
    *,
    source_height: int,
    source_width: int,
    size: int,
) -> bytes:
    """Return the ground truth of a clip as `.npz` bytes that depend on the arguments alone.

    Coordinates become fractions of the square crop, so 0 and 1 are its edges; what lies outside keeps its
    place there and is not visible. Objects that are out of sight in the clip's first frame, and points never
    seen, are left out. Depth is sampled at the nearest pixel; 0 is unknown.

    Args:
        path: The video's annotations.
        pts_seconds: Moments of the clip's frames; the nearest source frame answers for each.
        source_height: Displayed height of the video, in pixels.
        source_width: Displayed width of the video, in pixels.
        size: Side of the crop, in pixels.

    Returns:
        Some of `boxes` (O,T,4), `boxes_visible` (O,T), `points` (Q,T,2), `points_visible` (Q,T), `query_frames`
        (Q,) (first frame that sees the point), `depth` (T,h,w) float16 and `camera_motion` (T,9): translation in
        metres and the first two columns of the rotation from each frame's camera to the one before; zero for the first.

    Raises:
        VideoError: If the file is no such archive or its arrays do not fit together.
    """
    source = _load(path)
    frames = np.abs(source["pts_seconds"][None, :] - pts_seconds[:, None]).argmin(axis=1)
    crop = _Crop(source_height, source_width, source.get("frame_size", np.array([source_height, source_width])))
    clip: dict[str, np.ndarray] = {}
    if "boxes" in source:
        clip |= _boxes(source, frames, crop)
    if "points" in source:
        clip |= _points(source, frames, crop)
    if "depth" in source:
        rows, columns = crop.pixels(source["depth"].shape[1:], size)
        clip["depth"] = source["depth"][frames][:, rows[:, None], columns].astype(np.float16)
    if "camera_pose" in source:
        clip["camera_motion"] = camera_motion(source["camera_pose"][frames])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **clip)
    return buffer.getvalue()


def camera_motion(poses: Float64[np.ndarray, "T 4 4"]) -> Float32[np.ndarray, "T 9"]:
    """Return each frame's pose in the camera before it: 3 of translation, then two columns of rotation."""
    motion = np.zeros((len(poses), 9), np.float32)
    delta = np.linalg.inv(poses[:-1]) @ poses[1:]
    motion[1:, :3] = delta[:, :3, 3]
    motion[1:, 3:] = delta[:, :3, :2].transpose(0, 2, 1).reshape(-1, 6)
    return motion


class _Crop:
    """The centred square of a frame, in fractions of the short side."""

    def __init__(self, height: int, width: int, frame_size: Float[np.ndarray, " 2"]) -> None:
        self.side = min(height, width)
        self.unit = np.array([width, height]) / frame_size[::-1]
        self.origin = np.array([(width - self.side) / 2, (height - self.side) / 2])

    def place(self, xy: Float[np.ndarray, "*shape 2"]) -> Float32[np.ndarray, "*shape 2"]:
        """Return coordinates of the source as fractions of the crop."""
        placed: Float32[np.ndarray, "*shape 2"] = ((xy * self.unit - self.origin) / self.side).astype(np.float32)
        return placed

    def pixels(self, shape: tuple[int, int], size: int) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
        """Return the rows and columns of a map that lie at the middles of the crop's pixels."""
        height, width = shape
        scale = min(height, width) / self.side
        middles = (np.arange(size) + 0.5) / size * self.side
        rows, columns = (self.origin[1] + middles) * scale, (self.origin[0] + middles) * scale
        return rows.astype(int).clip(0, height - 1), columns.astype(int).clip(0, width - 1)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            source = {name: archive[name] for name in _NAMES if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VideoError("Annotations", f"{path}: not a readable .npz: {error}") from error
    _check(path, source)
    return source | {name: source[name].astype(bool) for name in _VISIBLE if name in source}


def _check(path: Path, source: dict[str, np.ndarray]) -> None:
    moments = source.get("pts_seconds", np.empty(0))
    problems = [
        f"`{name}` holds {array.dtype}, wanted numbers"
        for name, array in source.items()
        if array.dtype.kind not in _NUMBERS
    ]
    if not problems and (moments.ndim != 1 or not moments.size or not np.isfinite(moments).all()):
        problems = ["no `pts_seconds`; wanted the time of every annotated frame"]
    # What follows can be looked at only where the above is right.
    problems = problems or [*_misfits(source, len(moments)), *_bad_values(source)]
    if problems:
        raise VideoError("Annotations", f"{path}: {'; '.join(problems)}")


def _misfits(source: dict[str, np.ndarray], num_frames: int) -> Iterator[str]:
    """Yield what has not the shape it should have."""
    for name, ends in _WANTED_ENDS.items():
        wanted: tuple[Any, ...] = tuple(num_frames if end == "F" else end for end in ends)
        if name in source and (source[name].ndim != 3 or source[name].shape[-len(wanted) :] != wanted):
            yield f"`{name}` is {source[name].shape}, wanted it to end in {wanted}"
    for name in ("boxes", "points"):
        visible = source.get(f"{name}_visible")
        if name in source and (visible is None or visible.shape != source[name].shape[:2]):
            yield f"`{name}_visible` is missing or does not match `{name}`"
    if "depth" in source and (source["depth"].ndim != 3 or len(source["depth"]) != num_frames):
        yield f"`depth` is {source['depth'].shape}, wanted ({num_frames}, height, width)"


def _bad_values(source: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield what no array of its name can hold."""
    for name in _VISIBLE:
        if name in source and not np.isin(source[name], (0, 1)).all():
            yield f"`{name}` holds other values than false and true"
    frame_size = source.get("frame_size", np.ones(2))
    if frame_size.shape != (2,) or not (frame_size > 0).all():
        yield f"`frame_size` is {frame_size.tolist()}, wanted a height and a width"
    poses = source.get("camera_pose", np.empty((0, 4, 4)))
    if poses.shape[1:] == (4, 4) and (lost := _lost_poses(poses)):
        yield (
            f"`camera_pose` is no rotation and translation in {len(lost)} frames, such as {lost[0]}; leave it out, or "
            "cut the clip to frames that have one"
        )


def _lost_poses(poses: Float[np.ndarray, "F 4 4"]) -> list[int]:
    """Return the frames without a pose, which some data sets mark by infinities or zeros."""
    is_finite = np.isfinite(poses).all(axis=(1, 2))
    is_lost = ~is_finite
    is_lost[is_finite] = np.abs(np.linalg.det(poses[is_finite])) < _LEAST_DETERMINANT
    return np.flatnonzero(is_lost).tolist()


def _boxes(source: dict[str, np.ndarray], frames: Int[np.ndarray, " T"], crop: _Crop) -> dict[str, np.ndarray]:
    corners = source["boxes"][:, frames]
    corners = crop.place(corners.reshape(*corners.shape[:2], 2, 2)).clip(0, 1)
    has_area = (corners[:, :, 1] > corners[:, :, 0]).all(axis=-1)
    visible = source["boxes_visible"][:, frames] & has_area
    kept = visible[:, 0]
    return {"boxes": corners.reshape(*corners.shape[:2], 4)[kept], "boxes_visible": visible[kept]}


def _points(source: dict[str, np.ndarray], frames: Int[np.ndarray, " T"], crop: _Crop) -> dict[str, np.ndarray]:
    points = crop.place(source["points"][:, frames])
    visible = source["points_visible"][:, frames] & ((points >= 0) & (points < 1)).all(axis=-1)
    kept = visible.any(axis=1)
    return {
        "points": points[kept],
        "points_visible": visible[kept],
        "query_frames": visible[kept].argmax(axis=1),
    }
