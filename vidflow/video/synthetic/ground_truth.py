"""Compute the dense ground truth of a rendered clip. All arrays come from one scene, so they agree.

Axes: F frames, O objects (the target, then the distractors), Q points, L layers, H and W pixels.
Pixels: x in [0, W] and y in [0, H]; the middle of the top left pixel is (0.5, 0.5).
"""

from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from vidflow.video.synthetic.camera import intrinsics, project
from vidflow.video.synthetic.rendering import FIRST_BILLBOARD, Rendering, project_outline
from vidflow.video.synthetic.scene import Scene

NUM_POINTS = 24
_MIN_VISIBLE_FRACTION = 0.1


def annotate(scene: Scene, rendering: Rendering, *, fps: Fraction | int, seed: int) -> dict[str, np.ndarray]:
    """Compute the ground truth of every frame.

    Args:
        scene: What was rendered.
        rendering: Its pixels.
        fps: Frames per second.
        seed: Seed of the choice of points.

    Returns:
        `pts_seconds` (F,) float64: time of each frame, the first at 0;
        `boxes` (O, F, 4) float32: x0, y0, x1, y1 of the whole object, seen or hidden, clipped to the frame;
        `boxes_visible` (O, F) bool: at least a tenth of the object shows;
        `points` (Q, F, 2) float32: x, y of points fixed to surfaces, also if hidden or out of frame;
        in the first frame each is visible and at the centre of a pixel;
        `points_visible` (Q, F) bool: the pixel at the point shows the point's own layer;
        `depth` (F, H, W) float16: camera z in metres;
        `camera_intrinsics` (3, 3) float64: in pixels;
        `camera_pose` (F, 4, 4) float64: world-from-camera, axes x right, y down, z forward, in metres.
    """
    boxes, boxes_visible = _compute_boxes(scene, rendering)
    points, points_visible = _compute_points(scene, rendering, np.random.default_rng([seed, 1]))
    return {
        "pts_seconds": np.array([float(index / Fraction(fps)) for index in range(len(scene.poses))]),
        "boxes": boxes.astype(np.float32),
        "boxes_visible": boxes_visible,
        "points": points.astype(np.float32),
        "points_visible": points_visible,
        "depth": rendering.depth.astype(np.float16),
        "camera_intrinsics": intrinsics(rendering.depth.shape[-1]),
        "camera_pose": np.ascontiguousarray(scene.poses),
    }


def _compute_boxes(scene: Scene, rendering: Rendering) -> tuple[Float64[np.ndarray, "O F 4"], Bool[np.ndarray, "O F"]]:
    size = rendering.depth.shape[-1]
    boxes, visible = [], []
    for number, billboard in enumerate(scene.objects):
        outline = project_outline(billboard, scene, size=size)
        boxes.append(np.concatenate([outline.min(axis=0), outline.max(axis=0)], axis=-1))
        shown = (rendering.layers == FIRST_BILLBOARD + number).sum(axis=(1, 2))
        visible.append(shown >= _MIN_VISIBLE_FRACTION * _area(outline))
    return np.clip(np.stack(boxes), 0, size), np.stack(visible)


def _area(outline: Float64[np.ndarray, "K F 2"]) -> Float64[np.ndarray, " F"]:
    """Return the area of a polygon by the shoelace formula."""
    (x, y), (next_x, next_y) = outline.transpose(2, 0, 1), np.roll(outline, -1, axis=0).transpose(2, 0, 1)
    area: Float64[np.ndarray, " F"] = np.abs((x * next_y - next_x * y).sum(axis=0)) / 2
    return area


def _compute_points(
    scene: Scene, rendering: Rendering, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "Q F 2"], Bool[np.ndarray, "Q F"]]:
    size = rendering.depth.shape[-1]
    row, column = _draw_pixels(rendering.layers[0], rng)
    layer = rendering.layers[0, row, column].astype(int)
    near = rendering.depth[0, row, column].astype(np.float64)
    ray = np.linalg.solve(intrinsics(size), np.stack([column + 0.5, row + 0.5, np.ones_like(near)]))
    start = (ray * near).T @ scene.poses[0, :3, :3].T + scene.poses[0, :3, 3]
    still = np.zeros((FIRST_BILLBOARD, len(scene.poses), 3))
    moved = np.concatenate([still, [each.centres - each.centres[0] for each in scene.billboards]])
    xy, _ = project(start[:, None] + moved[layer], scene.poses, intrinsics(size))
    within = ((xy >= 0) & (xy < size)).all(axis=-1)
    x, y = np.where(within[..., None], xy, 0).astype(int).transpose(2, 0, 1)
    return xy, within & (rendering.layers[np.arange(len(scene.poses)), y, x] == layer[:, None])


def _draw_pixels(layers: UInt8[np.ndarray, "H W"], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draw distinct pixels such that each layer in view is equally likely, large or small."""
    _, which, counts = np.unique(layers, return_inverse=True, return_counts=True)
    weight = 1 / (counts[which.ravel()] * len(counts))
    return np.unravel_index(rng.choice(layers.size, NUM_POINTS, replace=False, p=weight), layers.shape)
