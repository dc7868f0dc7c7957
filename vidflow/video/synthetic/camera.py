"""A pinhole camera that drifts smoothly and shakes.

Axes: F frames, P points; 3 and 4 axes x right, y down, z forward, in metres.
Pixels: x in [0, W] and y in [0, H]; the middle of the top left pixel is (0.5, 0.5).
"""

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from vidflow.video.synthetic.motion import HALF_VIEW

Poses = Float64[np.ndarray, "F 4 4"]


def intrinsics(size: int) -> Float64[np.ndarray, "3 3"]:
    """Return the pinhole matrix, in pixels, of a square frame with `size` pixels a side."""
    focal, middle = size / (2 * HALF_VIEW), size / 2
    return np.array([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]])


def project(
    points: Float64[np.ndarray, "P F 3"], poses: Poses, matrix: Float64[np.ndarray, "3 3"]
) -> tuple[Float64[np.ndarray, "P F 2"], Float64[np.ndarray, "P F"]]:
    """Project world points, one position per frame, into each frame.

    Returns:
        Pixel coordinates x, y and depth (camera z) in metres.
    """
    seen = np.einsum("fij,pfi->pfj", poses[:, :3, :3], points - poses[:, :3, 3])
    return seen[..., :2] / seen[..., 2:] * matrix[0, 0] + matrix[:2, 2], seen[..., 2]


def draw_poses(
    rng: np.random.Generator, *, time: Float64[np.ndarray, " F"], travel: float, turn: float, shake: float
) -> tuple[Poses, Poses]:
    """Draw a smooth camera path through the clip, and the same path with shake.

    Every random term is as likely backwards in time as forwards.

    Args:
        rng: Source of the parameters.
        time: From -1 (first frame) to 1 (last frame).
        travel: Largest distance along one axis from the middle of the clip to either end, in metres.
        turn: Largest sideways turn from the middle of the clip to either end, in degrees; half for other axes.
        shake: Standard deviation of the shake of one frame: in degrees, and in units of 4 cm.

    Returns:
        World-from-camera matrices without and with shake.
    """
    step, bend = rng.uniform(-1, 1, size=(2, 6))
    way = time[:, None] * step + 0.3 * np.cos(np.pi * time[:, None] / 2) * bend
    # Sideways and forwards the full travel, vertically less: the ground must stay below every object.
    way *= np.array([travel, 0.3 * travel, travel, turn, turn / 2, turn / 2]) / 1.3
    way[:, 4] -= rng.uniform(6.0, 14.0)  # look down on the ground
    noise = rng.normal(size=(len(time) + 2, 6)) * np.array([0.04, 0.04, 0.04, 1.0, 1.0, 1.0]) * shake
    noise = 0.5 * noise[1:-1] + 0.25 * (noise[:-2] + noise[2:])
    return _matrices(way), _matrices(way + noise)


def _matrices(way: Float64[np.ndarray, "F 6"]) -> Poses:
    poses = np.tile(np.eye(4), (len(way), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("YXZ", way[:, 3:], degrees=True).as_matrix()
    poses[:, :3, 3] = way[:, :3]
    return poses
