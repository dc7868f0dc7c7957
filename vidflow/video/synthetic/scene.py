"""Draw what the camera films: a room with a tiled ground, standing billboards and moving objects.

Axes: F frames, O objects, K outline points; 3 world axes x right, y down, z forward, in metres.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from vidflow.video.synthetic.camera import Poses, draw_poses
from vidflow.video.synthetic.motion import HALF_VIEW, ClassName, draw_target_path, forward_of
from vidflow.video.synthetic.textures import Texture, draw_plain_texture, draw_room_texture, draw_target_texture

NUM_DISTRACTORS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Billboard:
    """A flat textured thing, always parallel to the world's x-y plane.

    Attributes:
        centres: Centre in each frame, world metres.
        half_width: Half its width (a blob: its mean radius), metres.
        half_height: Half its height (a blob: its mean radius), metres.
        shape: `bar` is a rectangle; `blob` has the outline `radius * (1 + bulge * cos(lobes * angle))`.
        lobes: Number of a blob's lobes.
        bulge: Height of a blob's lobes over its radius, in [0, 1).
        texture: Its texture.
    """

    centres: Float64[np.ndarray, "F 3"]
    half_width: float
    half_height: float
    shape: Literal["bar", "blob"]
    lobes: int = 0
    bulge: float = 0.0
    texture: Texture

    def outline(self) -> Float64[np.ndarray, "K 3"]:
        """Return points of the outline relative to the centre, in order; of a bar, its corners."""
        if self.shape == "bar":
            corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
            return corners * [self.half_width, self.half_height, 0]
        angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        radius = self.half_width * (1 + self.bulge * np.cos(self.lobes * angle))
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros_like(angle)], axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a clip shows, frame by frame.

    Attributes:
        poses: World-from-camera matrix of each frame.
        objects: Moving billboards: the target, then the distractors.
        furniture: Standing billboards: pillars, and in some scenes a post near the camera.
        ground_y: Height of the ground plane (y is down), metres.
        wall_z: Depth of the back wall, metres.
        ground_texture: Texture of the ground.
        wall_texture: Texture of the back wall.
    """

    poses: Poses
    objects: tuple[Billboard, ...]
    furniture: tuple[Billboard, ...]
    ground_y: float
    wall_z: float
    ground_texture: Texture
    wall_texture: Texture

    @property
    def billboards(self) -> tuple[Billboard, ...]:
        """Objects, then furniture."""
        return self.objects + self.furniture

    def backwards(self) -> "Scene":
        """Return the same scene with time reversed."""
        objects = tuple(replace(each, centres=each.centres[::-1]) for each in self.objects)
        furniture = tuple(replace(each, centres=each.centres[::-1]) for each in self.furniture)
        return replace(self, poses=self.poses[::-1], objects=objects, furniture=furniture)


def draw_scene(
    label: ClassName, *, seed: int, num_frames: int, difficulty: float, camera_travel: float, camera_turn: float
) -> Scene:
    """Draw a scene of one class; the partner class with the same seed is the same scene backwards.

    Args:
        label: Class of the target's motion.
        seed: Source of every choice, at least 0.
        num_frames: Number of frames, at least 2.
        difficulty: Strength of shake, distractors and occluder, in [0, 1].
        camera_travel: Largest distance along one axis from the middle of the clip to either end, in metres.
        camera_turn: Largest sideways turn from the middle of the clip to either end, in degrees; half for other axes.
    """
    forward = forward_of(label)
    rng = np.random.default_rng(seed)
    time = np.linspace(-1, 1, num_frames)
    smooth, poses = draw_poses(rng, time=time, travel=camera_travel, turn=camera_turn, shake=0.8 * difficulty)
    target = Billboard(
        # The path follows the camera's drift, so that the picture always shows the motion of the class.
        centres=_to_world(draw_target_path(forward, rng, time=time), smooth),
        half_width=(radius := rng.uniform(0.42, 0.5)),
        half_height=radius,
        shape="blob",
        lobes=int(rng.integers(2, 6)),
        bulge=rng.uniform(0.0, 0.2),
        texture=draw_target_texture(rng),
    )
    distractors = [
        _draw_distractor(rng, time=time, smooth=smooth, difficulty=difficulty) for _ in range(NUM_DISTRACTORS)
    ]
    ground_y, wall_z = rng.uniform(3.4, 4.0), rng.uniform(8.0, 9.5)
    scene = Scene(
        poses=poses,
        objects=(target, *distractors),
        furniture=_draw_furniture(rng, num_frames=num_frames, ground_y=ground_y, difficulty=difficulty),
        ground_y=ground_y,
        wall_z=wall_z,
        ground_texture=draw_room_texture(rng, hue=rng.uniform(0.2, 0.4), contrast=70.0),
        wall_texture=draw_room_texture(rng, hue=rng.uniform(0.5, 0.7), contrast=25.0),
    )
    return scene if label == forward else scene.backwards()


def _to_world(path: Float64[np.ndarray, "F 3"], poses: Poses) -> Float64[np.ndarray, "F 3"]:
    world: Float64[np.ndarray, "F 3"] = np.einsum("fij,fj->fi", poses[:, :3, :3], path) + poses[:, :3, 3]
    return world


def _draw_distractor(
    rng: np.random.Generator, *, time: Float64[np.ndarray, " F"], smooth: Poses, difficulty: float
) -> Billboard:
    depth = rng.uniform(4.0, 5.5)
    middle, drift, sway = rng.uniform([-0.8, -0.8], [0.8, 0.2]), rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 0.2, 2)
    phase = rng.uniform(0, 2 * np.pi, 2)  # uniform, so that the sway is as likely backwards as forwards
    wander = time[:, None] * drift + sway * np.sin(np.pi * time[:, None] + phase)
    x, y = (middle + (0.2 + 0.8 * difficulty) * wander).T * HALF_VIEW * depth
    radius = rng.uniform(0.18, 0.22) + 0.14 * difficulty
    return Billboard(
        centres=_to_world(np.stack([x, np.minimum(y, 1.0), np.full_like(x, depth)], axis=-1), smooth),
        half_width=radius,
        half_height=radius,
        shape="blob",
        lobes=int(rng.integers(2, 6)),
        bulge=rng.uniform(0.0, 0.2),
        texture=draw_plain_texture(rng, saturation=0.2 + 0.3 * difficulty),
    )


def _draw_furniture(
    rng: np.random.Generator, *, num_frames: int, ground_y: float, difficulty: float
) -> tuple[Billboard, ...]:
    def bar(x: float, depth: float, half_width: float, half_height: float) -> Billboard:
        centre = np.array([x, ground_y - half_height, depth])
        texture = draw_plain_texture(rng, saturation=0.15)
        return Billboard(
            centres=np.tile(centre, (num_frames, 1)),
            half_width=half_width,
            half_height=half_height,
            shape="bar",
            texture=texture,
        )

    pillars = [
        bar(x + rng.uniform(-0.8, 0.8), rng.uniform(5.8, 7.2), rng.uniform(0.2, 0.45), rng.uniform(0.6, 2.2))
        for x in (-2.2, 0.0, 2.2)
    ]
    if rng.random() < difficulty:
        # A post in front of the target, up to 1.7 m above the camera. It crosses the frame's edge, but is never behind
        # the camera.
        height = (ground_y + 1.7) / 2
        pillars.append(bar(rng.uniform(-0.6, 0.6), rng.uniform(1.7, 1.9), 0.05 + 0.06 * difficulty, height))
    return tuple(pillars)
