"""The ground truth of an augmented clip: boxes, points, depth maps and camera motion move with its pixels.

Axes: T frames, O boxes, Q points, h and w pixels of a depth map.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from vidflow.video.view_draws import View, shifted_frames

# Mirroring x turns a rotation R into M R M with M = diag(-1, 1, 1); of R, two columns are stored.
_MIRRORED_MOTION = np.array([-1, 1, 1, 1, -1, -1, -1, 1, 1], np.float32)
_NO_MOTION = np.array([0, 0, 0, 1, 0, 0, 0, 1, 0], np.float32)


def augment_targets(targets: Mapping[str, np.ndarray], view: View, *, size: int) -> dict[str, np.ndarray]:
    """Return the arrays of a clip's ground truth as its view shows them.

    Boxes are cut to the crop; one that is not in the first frame any more is left out, as a tracker could not be told
    of it. A point outside the crop is not visible, and one that never is visible is left out. Depths stay in metres.

    Args:
        targets: The arrays by name, as `vidflow.training.batches.read_annotations` returns them.
        view: What was drawn.
        size: Side of the stored square frames, in pixels.
    """
    any_array = next(iter(targets.values()), None)
    if any_array is None:
        return {}
    crop = _Crop(view, size)
    shown: dict[str, np.ndarray] = {}
    if "boxes" in targets:
        frames = shifted_frames(targets["boxes"].shape[1], view.shift)
        shown |= _move_boxes(targets["boxes"][:, frames], targets["boxes_visible"][:, frames], crop)
    if "points" in targets:
        frames = shifted_frames(targets["points"].shape[1], view.shift)
        shown |= _move_points(targets["points"][:, frames], targets["points_visible"][:, frames], crop)
    if "depth" in targets:
        depth = targets["depth"]
        rows, columns = crop.pixels(depth.shape[1:])
        shown["depth"] = depth[shifted_frames(len(depth), view.shift)][:, rows[:, None], columns]
    if "camera_motion" in targets:
        shown["camera_motion"] = _move_camera(targets["camera_motion"], view)
    return shown


def exchanged_label(label: int, view: View, pairs: Mapping[int, int]) -> int:
    """Return the class of a view: that of the mirrored clip, if the clip is mirrored."""
    return pairs.get(label, label) if view.is_flipped else label


def label_pairs(names: Sequence[tuple[str, str]], class_names: Sequence[str]) -> dict[int, int]:
    """Return class -> class of the mirrored clip.

    Raises:
        ValueError: If a name is no class; the message has the name.
    """
    numbers = {name: index for index, name in enumerate(class_names)}
    if unknown := [name for pair in names for name in pair if name not in numbers]:
        raise ValueError(f"flip_labels: got {unknown[0]!r}, wanted classes such as {', '.join(class_names[:3])}")
    pairs = [(numbers[first], numbers[second]) for first, second in names]
    return {**dict(pairs), **{second: first for first, second in pairs}}


class _Crop:
    """The crop of a view, in fractions of the stored frame's side."""

    def __init__(self, view: View, size: int) -> None:
        top, left, height, width = view.box
        self.origin = np.array([left, top], np.float32) / size
        self.extent = np.array([width, height], np.float32) / size
        self.is_flipped = view.is_flipped

    def place(self, xy: Float[np.ndarray, "*shape 2"]) -> Float[np.ndarray, "*shape 2"]:
        """Convert coordinates in the stored frame to coordinates in the view."""
        placed = ((xy - self.origin) / self.extent).astype(np.float32)
        if self.is_flipped:
            placed[..., 0] = 1 - placed[..., 0]
        return placed

    def pixels(self, shape: tuple[int, ...]) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
        """Return the rows and columns of a depth map that the view's pixels show, as many as before."""
        height, width = shape
        rows = (self.origin[1] + (np.arange(height) + 0.5) / height * self.extent[1]) * height
        columns = (self.origin[0] + (np.arange(width) + 0.5) / width * self.extent[0]) * width
        shown = columns.astype(int).clip(0, width - 1)
        return rows.astype(int).clip(0, height - 1), shown[::-1] if self.is_flipped else shown


def _move_boxes(boxes: np.ndarray, visible: np.ndarray, crop: _Crop) -> dict[str, np.ndarray]:
    corners = crop.place(boxes.reshape(*boxes.shape[:2], 2, 2))
    # A mirrored box has its corners exchanged.
    corners = np.stack([corners.min(axis=2), corners.max(axis=2)], axis=2).clip(0, 1)
    shown = visible & (corners[:, :, 1] > corners[:, :, 0]).all(axis=-1)
    kept = shown[:, 0]
    return {"boxes": corners.reshape(boxes.shape)[kept], "boxes_visible": shown[kept]}


def _move_points(points: np.ndarray, visible: np.ndarray, crop: _Crop) -> dict[str, np.ndarray]:
    placed = crop.place(points)
    shown = visible & ((placed >= 0) & (placed < 1)).all(axis=-1)
    kept = shown.any(axis=1)
    queries = shown[kept].argmax(axis=1) if kept.any() else np.zeros(0)
    return {"points": placed[kept], "points_visible": shown[kept], "query_frames": queries.astype(np.int64)}


def _move_camera(motion: Float[np.ndarray, "T 9"], view: View) -> Float[np.ndarray, "T 9"]:
    frames = shifted_frames(len(motion), view.shift)
    moved: np.ndarray = motion[frames]
    moved[1:][np.diff(frames) == 0] = _NO_MOTION
    return moved * _MIRRORED_MOTION if view.is_flipped else moved


__all__ = ["augment_targets", "exchanged_label", "label_pairs"]
