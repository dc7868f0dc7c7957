"""Relative pose error between frames.

Axes: B clips, T frames.
"""

import torch
from torch import Tensor

from vidflow.models.tasks.coordinates import rotation_matrix
from vidflow.models.tasks.metrics.metric import require_counted


class CameraPoseMetric:
    """Translation error in millimetres and rotation error in degrees per frame, mean and root mean square.

    Source: Sturm et al. 2012, A Benchmark for the Evaluation of RGB-D SLAM Systems, section VII, over one frame. The
    published table does not state whether it uses the mean or the root mean square, so both are reported.
    """

    def __init__(self) -> None:
        # Sums of translation, squared translation, rotation, squared rotation.
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._num_frames = 0

    def update(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """Add predicted `camera_motion` (B, T, 9), compared with the true one, without the first frame of each clip."""
        predicted, wanted = (
            part["camera_motion"][:, 1:].detach().cpu().double().flatten(0, 1) for part in (predictions, targets)
        )
        translation = 1000 * (predicted[:, :3] - wanted[:, :3]).norm(dim=-1)
        rotation = _angle_degrees(rotation_matrix(predicted[:, 3:]), rotation_matrix(wanted[:, 3:]))
        self._sums += torch.stack([part.sum() for part in (translation, translation**2, rotation, rotation**2)])
        self._num_frames += len(predicted)

    def compute(self) -> dict[str, float]:
        """Return `rpe_translation_mm`, `rpe_rotation_deg`, and both again with `_rmse`."""
        require_counted(self._num_frames, "frame after the first of a clip")
        translation, translation2, rotation, rotation2 = (self._sums / self._num_frames).tolist()
        return {
            "rpe_translation_mm": translation,
            "rpe_translation_mm_rmse": translation2**0.5,
            "rpe_rotation_deg": rotation,
            "rpe_rotation_deg_rmse": rotation2**0.5,
        }


def _angle_degrees(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between rotations, from the norm of their difference, which is accurate near zero."""
    chord = (first - second).flatten(1).norm(dim=-1) / 8**0.5
    return torch.rad2deg(2 * torch.asin(chord.clamp(max=1.0)))
