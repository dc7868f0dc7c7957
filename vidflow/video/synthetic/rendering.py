"""Paint a scene: cast a ray at the room for every pixel, then paint the billboards over it from far to near.

Axes: F frames, H and W pixels, K outline points; 3 the channels red, green, blue or the axes x, y, z.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from vidflow.video.synthetic.camera import intrinsics, project
from vidflow.video.synthetic.scene import Billboard, Scene
from vidflow.video.synthetic.textures import TEXELS_PER_METRE

WALL, GROUND, FIRST_BILLBOARD = 0, 1, 2
"""Layer numbers: billboard b of `Scene.billboards` is layer `FIRST_BILLBOARD + b`."""

# The same haze in all videos, so that its strength shows the distance.
_HAZE = np.array([190.0, 200.0, 212.0], dtype=np.float32)
_HAZE_METRES = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """The pixels of a clip and what each shows.

    Attributes:
        frames: RGB frames.
        depth: Camera z at the centre of the pixel, metres.
        layers: Number of the layer that the pixel shows.
    """

    frames: UInt8[np.ndarray, "F H W 3"]
    depth: Float32[np.ndarray, "F H W"]
    layers: UInt8[np.ndarray, "F H W"]


def render_scene(scene: Scene, *, size: int) -> Rendering:
    """Render every frame of a scene.

    Args:
        scene: The scene.
        size: Height and width in pixels.
    """
    shape = (len(scene.poses), size, size)
    frames = np.empty((*shape, 3), dtype=np.uint8)
    depth, layers = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.uint8)
    centres = np.stack([each.centres for each in scene.billboards])
    _, distances = project(centres, scene.poses, intrinsics(size))
    windows = np.stack([_pixel_windows(each, scene, size) for each in scene.billboards])
    for index, pose in enumerate(scene.poses):
        rays = _cast_rays(pose, size)
        canvas, depth[index], layers[index] = _paint_room(scene, pose, rays)
        for number in np.argsort(-distances[:, index]):
            left, top, right, bottom = windows[number, index]
            if left < right and top < bottom:
                view = np.s_[top:bottom, left:right]
                alpha, colour, near = _paint_billboard(scene.billboards[number], index, pose, rays[(..., *view)], size)
                canvas[view] += alpha[..., None] * (colour - canvas[view])
                solid = alpha > 0.5
                depth[index][view][solid] = near[solid]
                layers[index][view][solid] = FIRST_BILLBOARD + number
        frames[index] = np.clip(canvas + 0.5, 0, 255)
    return Rendering(frames=frames, depth=depth, layers=layers)


def project_outline(billboard: Billboard, scene: Scene, *, size: int) -> Float64[np.ndarray, "K F 2"]:
    """Project a billboard's outline into every frame, in pixels, in or out of the frame."""
    xy, _ = project(billboard.outline()[:, None] + billboard.centres, scene.poses, intrinsics(size))
    return xy


def _cast_rays(pose: Float64[np.ndarray, "4 4"], size: int) -> Float32[np.ndarray, "3 H W"]:
    """Return the world direction of the ray through the centre of each pixel, scaled to 1 m of camera z."""
    matrix = intrinsics(size)
    offset = (np.arange(size) + 0.5 - matrix[0, 2]) / matrix[0, 0]
    right, down, forward = (pose[:3, axis, None, None].astype(np.float32) for axis in range(3))
    across, along = offset[None, None, :].astype(np.float32), offset[None, :, None].astype(np.float32)
    rays: Float32[np.ndarray, "3 H W"] = (right * across + forward) + down * along
    return rays


def _paint_room(
    scene: Scene, pose: Float64[np.ndarray, "4 4"], rays: Float32[np.ndarray, "3 H W"]
) -> tuple[Float32[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    x, y, z = (np.float32(value) for value in pose[:3, 3])
    to_wall = (np.float32(scene.wall_z) - z) / rays[2]
    to_ground = (np.float32(scene.ground_y) - y) / np.maximum(rays[1], np.float32(1e-6))  # level rays never land
    is_ground = to_ground < to_wall
    depth = np.where(is_ground, to_ground, to_wall)
    across = x + depth * rays[0]
    along = np.where(is_ground, z + depth * rays[2], y + depth * rays[1])
    both = np.concatenate([scene.wall_texture, scene.ground_texture])
    side = len(scene.wall_texture)
    row = _texel_index(along, side) + side * is_ground
    return (
        _add_haze(both.reshape(-1, 3)[row * side + _texel_index(across, side)], depth),
        depth,
        is_ground.astype(np.uint8),
    )


def _paint_billboard(
    billboard: Billboard,
    index: int,
    pose: Float64[np.ndarray, "4 4"],
    rays: Float32[np.ndarray, "3 H W"],
    size: int,
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
    """Return coverage, colour and depth of one billboard in one frame's window."""
    offset = (pose[:3, 3] - billboard.centres[index]).astype(np.float32)
    depth = -offset[2] / rays[2]
    u, v = offset[0] + depth * rays[0], offset[1] + depth * rays[1]
    if billboard.shape == "bar":
        inside = np.minimum(np.float32(billboard.half_width) - np.abs(u), np.float32(billboard.half_height) - np.abs(v))
    else:
        lobes = np.float32(billboard.bulge) * np.cos(np.float32(billboard.lobes) * np.arctan2(v, u))
        inside = np.float32(billboard.half_width) * (1 + lobes) - np.hypot(u, v)
    # The edge fades over one pixel, whose side is depth / focal metres.
    alpha = np.clip(0.5 + inside * np.float32(intrinsics(size)[0, 0]) / depth, 0, 1)
    side = len(billboard.texture)
    return alpha, _add_haze(billboard.texture[_texel_index(v, side), _texel_index(u, side)], depth), depth


def _texel_index(metres: Float32[np.ndarray, "H W"], side: int) -> Int[np.ndarray, "H W"]:
    texel: Int[np.ndarray, "H W"] = np.floor(metres * np.float32(TEXELS_PER_METRE)).astype(np.int32) % side
    return texel


def _add_haze(colour: Float32[np.ndarray, "H W 3"], depth: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W 3"]:
    clear = np.exp(depth * np.float32(-1 / _HAZE_METRES))[..., None]
    hazy: Float32[np.ndarray, "H W 3"] = _HAZE + clear * (colour - _HAZE)
    return hazy


def _pixel_windows(billboard: Billboard, scene: Scene, size: int) -> Int[np.ndarray, "F 4"]:
    """Return, per frame, the window (left, top, right, bottom) of the billboard's outline and its faded edge."""
    xy = project_outline(billboard, scene, size=size)
    low, high = np.floor(xy.min(axis=0) - 1), np.ceil(xy.max(axis=0) + 1)
    windows: Int[np.ndarray, "F 4"] = np.clip(np.concatenate([low, high], axis=-1), 0, size).astype(int)
    return windows
