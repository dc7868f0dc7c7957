"""Check a video's ground truth: first the shapes of its arrays, then their values at the frames of a clip.

Every check yields one sentence per problem. Axes: F source frames, T frames of a clip, O objects, Q points.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

Arrays = Mapping[str, np.ndarray]

_WANTED_LAST_AXES = {"boxes": ("F", 4), "points": ("F", 2), "camera_pose": ("F", 4, 4)}
VISIBLE = ("boxes_visible", "points_visible")
# What is wrong with the boxes and points that `_find_outside` returns.
_WHAT_IS_BAD = {"boxes": "empty or outside the frame", "points": "outside the frame"}
# Largest distance of a clip's frame from the nearest annotated frame, in median gaps between annotated frames. If two
# frames in a row are missing, the middle of the hole is 1.5 gaps from both ends.
_MAX_GAPS = 1.5
# Limits of that distance. The first is always allowed, because container clocks and published frame rates are rounded.
# More than the second is never allowed: the coarsest data sets annotate once a second, and one frame may be missing.
_MIN_LIMIT_SECONDS, _MAX_LIMIT_SECONDS = 0.1, 1.0
# Visible points may lie outside the frame by this fraction of its side, because interpolated points do.
_OVERSHOOT = 0.05
# Depth is stored in half precision.
_MAX_METRES = float(np.finfo(np.float16).max)
# Tolerance of the test for an orthonormal rotation. The error of half-precision poses is ten times smaller.
_ROTATION_TOLERANCE = 1e-2
# Larger than any distance on Earth.
_MAX_TRANSLATION_METRES = 1e8
# The aspect ratio of depth maps may differ from the video's by this fraction, because some are padded to whole blocks.
_ASPECT_TOLERANCE = 0.05


def misfits(source: Arrays) -> Iterator[str]:
    """Yield a sentence for each array with a wrong shape."""
    moments = source.get("pts_seconds", np.empty(0))
    if moments.ndim != 1 or not moments.size or not np.isfinite(moments).all():
        yield "no `pts_seconds`; wanted the time of every annotated frame"
        return
    if not (np.diff(moments.astype(np.float64)) > 0).all():
        yield "`pts_seconds` does not rise from frame to frame; wanted each frame later than the one before"
    for name, ends in _WANTED_LAST_AXES.items():
        wanted: tuple[Any, ...] = tuple(len(moments) if end == "F" else end for end in ends)
        if name in source and (source[name].ndim != 3 or source[name].shape[-len(wanted) :] != wanted):
            yield f"`{name}` has the shape {source[name].shape}, wanted one that ends in {wanted}"
    for name in ("boxes", "points"):
        one, visible = source.get(name), source.get(f"{name}_visible")
        if (one is None) != (visible is None):
            yield f"`{name}_visible` is missing" if visible is None else f"`{name}` are missing"
        elif one is not None and visible is not None and visible.shape != one.shape[:2]:
            yield f"`{name}_visible` has the shape {visible.shape}, which does not match `{name}`, {one.shape}"
    depth = source.get("depth", np.empty((len(moments), 1, 1)))
    if depth.ndim != 3 or len(depth) != len(moments) or not depth.size:
        yield f"`depth` has the shape {depth.shape}, wanted ({len(moments)}, height, width)"
    if (shape := source.get("frame_size", np.empty(2)).shape) != (2,):
        yield f"`frame_size` has the shape {shape}, wanted a height and a width"


def moments_unanswered(
    moments: Float64[np.ndarray, " F"], frames: Int[np.ndarray, " T"], pts_seconds: Float64[np.ndarray, " T"]
) -> Iterator[str]:
    """Yield a sentence if a frame of the clip is too far in time from the nearest annotated frame."""
    gaps = np.abs(moments[frames] - pts_seconds)
    usual = float(np.median(np.diff(moments))) if len(moments) > 1 else 0.0
    most = float(np.clip(_MAX_GAPS * usual, _MIN_LIMIT_SECONDS, _MAX_LIMIT_SECONDS))
    worst = int(gaps.argmax())
    if gaps[worst] > most:
        yield (
            f"the frame at {pts_seconds[worst]:g} s is {gaps[worst]:g} s from the nearest annotated one, wanted at "
            f"most {most:g} s (`pts_seconds` goes from {moments[0]:g} to {moments[-1]:g} s); annotate the whole clip, "
            "with times on the video's clock"
        )


def bad_values(clip: Arrays, frames: Int[np.ndarray, " T"], *, source_height: int, source_width: int) -> Iterator[str]:
    """Yield a sentence for each array with impossible values.

    Args:
        clip: The arrays, at the frames of the clip.
        frames: Index in the source of each frame of the clip.
        source_height: Height of the video, in pixels.
        source_width: Width of the video, in pixels.
    """
    frame_size = clip["frame_size"]
    if not (np.isfinite(frame_size) & (frame_size > 0)).all():
        yield f"`frame_size` is {frame_size.tolist()}, wanted a height and a width"
        return
    for name in VISIBLE:
        if name in clip and not np.isin(clip[name], (0, 1)).all():
            yield f"`{name}` holds values other than false and true"
    with np.errstate(all="ignore"):  # infinities are problems to find, not errors
        for name, is_bad in _find_outside(clip, frame_size).items():
            if is_bad.any():
                row, t = np.argwhere(is_bad)[0].tolist()
                yield (
                    f"{int(is_bad.sum())} visible {name} are {_WHAT_IS_BAD[name]}, such as "
                    f"{clip[name][row, t].tolist()} in frame {frames[t]} of {frame_size.tolist()} height and width; "
                    f"correct them or `{name}_visible`"
                )
        if "camera_pose" in clip and (is_lost := _find_invalid_poses(clip["camera_pose"])).any():
            yield (
                f"`camera_pose` is not a rotation and translation in {int(is_lost.sum())} frames, such as frame "
                f"{frames[is_lost][0]}; leave it out, or cut the clip to frames that have a pose"
            )
    if "depth" in clip:
        yield from _check_depth(clip["depth"], source_height / source_width)


def _find_outside(clip: Arrays, frame_size: Float[np.ndarray, " 2"]) -> dict[str, Bool[np.ndarray, "rows T"]]:
    """Return masks of the visible boxes that are empty or outside the frame, and of the visible points outside it."""
    found, unit = {}, frame_size[::-1].astype(np.float64)
    if "boxes" in clip:
        corners = clip["boxes"].reshape(*clip["boxes"].shape[:2], 2, 2) / unit
        low, high = corners[:, :, 0], corners[:, :, 1]
        shown = np.isfinite(corners).all(axis=-2) & (low < high) & (high > 0) & (low < 1)
        found["boxes"] = (clip["boxes_visible"] != 0) & ~shown.all(axis=-1)
    if "points" in clip:
        shown = np.abs(clip["points"] / unit - 0.5) <= 0.5 + _OVERSHOOT
        found["points"] = (clip["points_visible"] != 0) & ~shown.all(axis=-1)
    return found


def _check_depth(depth: Float[np.ndarray, "T H W"], aspect: float) -> Iterator[str]:
    least, most = float(depth.min()), float(depth.max())  # NaN if any value is NaN
    if not (least >= 0 and most <= _MAX_METRES):
        yield (f"`depth` goes from {least:g} to {most:g}, wanted metres from 0 to {_MAX_METRES:g}, and 0 for unknown")
    height, width = depth.shape[1:]
    if abs(height - width * aspect) > max(1, _ASPECT_TOLERANCE * height):
        yield f"`depth` is {width} x {height}, another aspect ratio than the video's; rotate or crop it like the video"


def _find_invalid_poses(poses: Float[np.ndarray, "T 4 4"]) -> Bool[np.ndarray, " T"]:
    """Return a mask of the frames with an invalid pose: infinities or zeros (no pose), or a scaled or mirrored one."""
    exact = poses.astype(np.float64)
    rotation = exact[:, :3, :3]
    is_orthonormal = np.abs(rotation.swapaxes(1, 2) @ rotation - np.eye(3)) < _ROTATION_TOLERANCE
    is_pose = is_orthonormal.all(axis=(1, 2)) & (np.linalg.det(rotation) > 0)
    is_pose &= (np.abs(exact[:, :3, 3]) < _MAX_TRANSLATION_METRES).all(axis=1)
    is_pose &= np.isclose(exact[:, 3], [0, 0, 0, 1]).all(axis=1)
    found: Bool[np.ndarray, " T"] = ~is_pose
    return found
