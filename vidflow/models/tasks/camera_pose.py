"""Camera pose: the motion of the camera from each frame to the next.

Axes: B clips, T frames, L tokens of the core, D width.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.config.tasks import facts_of
from vidflow.models.cores.temporal_core import State, TemporalCore
from vidflow.models.tasks.coordinates import rotation_matrix
from vidflow.models.tasks.metrics.camera_pose import CameraPoseMetric
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.readouts import build_projection
from vidflow.models.tasks.spec import TaskSpec, TrivialAnswer
from vidflow.models.tasks.task import Task

# Initial log variances s. Source: Kendall and Cipolla 2017 (arXiv 1704.00390), section 3. Rotation errors are
# hundredths: from 0 its s would need thousands of steps, and the rotation would hardly be trained in the meantime.
_LOG_VARIANCES = (0.0, -3.0)
# Initial standard deviation of the head's last weights: the first predictions are of a camera that stands still.
_MOTION_STD = 0.01


class CameraPoseTask(Task):
    """Predict how the camera moved since the previous frame, from the average token of the frame.

    The head regresses translation (metres) and the first two columns of the rotation. `standardize` replaces the
    head's layer norm by batch norm. Layer norm keeps the part of the average token that is the same in all frames; if
    this part is large, the head sees little of the motion.

    Source: Orlova et al. 2026 (arXiv 2605.19137), streaming nuScenes readout; Zhou et al. 2019 (arXiv 1812.07035) for
    the six numbers of a rotation; Kendall and Cipolla 2017 (arXiv 1704.00390), section 3.2.2, for the balance of the
    two losses: the Euclidean error of the translation and the Frobenius norm of the difference of the rotations.
    """

    def __init__(self, core: TemporalCore, options: TaskOptions) -> None:
        super().__init__(core, options)
        width = options.readout_dim or 1024
        hidden = options.head_hidden_dim or width // 2
        self.projection = build_projection(core.embed_dim, width)
        motion = nn.Linear(hidden, 9)
        nn.init.normal_(motion.weight, std=_MOTION_STD)
        with torch.no_grad():
            motion.bias.copy_(torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0]))
        norm = _FrameBatchNorm(width) if options.standardize else nn.LayerNorm(width)
        self.head = nn.Sequential(norm, nn.Linear(width, hidden), nn.GELU(), motion)
        # s in exp(-s) loss + s, for translation and rotation.
        self.log_variances = nn.Parameter(torch.tensor(_LOG_VARIANCES))

    def read(
        self, features: Float[Tensor, "B T L D"], queries: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Return `camera_motion` (B, T, 9); ignore the motion of frame 0, which has no previous frame."""
        del queries
        return {"camera_motion": self.head(self.projection(features).mean(2))}, state

    def loss(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Compare with `camera_motion` (B, T, 9), without frame 0.

        Raises:
            ValueError: The clips have a single frame, so there is no motion.
        """
        predicted, wanted = (part["camera_motion"][:, 1:].float() for part in (predictions, targets))
        if not predicted.shape[1]:
            raise ValueError("camera pose needs clips of at least 2 frames; got 1")
        translation = (predicted[..., :3] - wanted[..., :3]).norm(dim=-1).mean()
        difference = rotation_matrix(predicted[..., 3:]) - rotation_matrix(wanted[..., 3:])
        errors = torch.stack([translation, difference.flatten(-2).norm(dim=-1).mean()])
        return (torch.exp(-self.log_variances) * errors + self.log_variances).sum()


class _FrameBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, T, D) over clips and frames."""

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Normalise each channel."""
        normed: Tensor = super().forward(x.flatten(0, 1))
        return normed.view_as(x)


def _mean_motion(targets: Iterator[dict[str, Tensor]], num_classes: int) -> Float[Tensor, " 9"]:
    """Average the motions between frames."""
    del num_classes
    return torch.cat([clip["camera_motion"][0, 1:] for clip in targets]).mean(0)


CAMERA_POSE = TaskSpec(
    facts=facts_of("camera_pose"),
    build=CameraPoseTask,
    build_metric=CameraPoseMetric,
    trivial=TrivialAnswer(
        words="the mean motion of the training split",
        fit=_mean_motion,
        answer=lambda mean, targets: {"camera_motion": mean.expand_as(targets["camera_motion"])},
    ),
)
