"""The five tasks: what is predicted, how it is trained, and their choice by name."""

from typing import Literal, assert_never

from vidflow.models.cores.blocks import fitting_heads
from vidflow.models.cores.temporal_core import TemporalCore
from vidflow.models.tasks.box_tracking import BoxTrackingTask
from vidflow.models.tasks.camera_pose import CameraPoseTask
from vidflow.models.tasks.classification import ClassificationTask
from vidflow.models.tasks.depth import DepthTask
from vidflow.models.tasks.point_tracking import PointTrackingTask
from vidflow.models.tasks.task import Task, TaskState

TaskName = Literal["classification", "box_tracking", "point_tracking", "depth", "camera_pose"]


def build_task(
    name: TaskName,
    *,
    core: TemporalCore,
    embed_dim: int,
    num_depths: int = 1,
    num_classes: int | None = None,
    image_size: int = 224,
    readout_width: int | None = None,
    readout_heads: int | None = None,
    query_hidden_dim: int | None = None,
    head_hidden_dim: int | None = None,
    num_frequencies: int | None = None,
    frame_loss_weight: float = 0.1,
    mixing_chunk_frames: int | None = None,
    reference: bool = False,
    standardize: bool = False,
) -> Task:
    """Build a task around a core. None means the published size, adapted to `readout_width`.

    Args:
        name: Which task.
        core: The temporal core, shared by nothing else.
        embed_dim: Width of the encoder's tokens, which is the core's.
        num_depths: Tapped depths of the encoder; above one they are mixed by adapters.
        num_classes: Classes of `classification`.
        image_size: Pixels a side of the crop that `depth` predicts, a multiple of 8.
        readout_width: Width of the readout; published 768 for classification, else 1024.
        readout_heads: Attention heads of the readout; published 12, 4, 8, 16 in the order of `TaskName`.
        query_hidden_dim: Hidden width of the coordinate encoders; half the readout's width.
        head_hidden_dim: Hidden width of the heads of points and pose; half the readout's width.
        num_frequencies: Fourier bases of box and point queries; 8, but 16 if `reference`.
        frame_loss_weight: Weight of the mean loss over frames beside that of the last frame, in classification.
        mixing_chunk_frames: Frames whose adapter activations are held at once; None is all.
        reference: Behave as the published trackers do, see `BoxTrackingTask` and `PointTrackingTask`.
        standardize: Scale the channels of what the head reads over frames, see `CameraPoseTask`; others ignore it.

    Raises:
        ValueError: A width does not fit, or `num_classes` is missing.
    """
    if embed_dim != core.embed_dim:
        raise ValueError(f"embed_dim is {embed_dim} but the core was built with embed_dim {core.embed_dim}")
    width = readout_width or (768 if name == "classification" else 1024)
    heads = readout_heads or fitting_heads(width, most=_published_heads(name))
    if width % heads:
        raise ValueError(f"readout_width {width} does not split into readout_heads {heads}; choose a divisor")
    query_hidden, head_hidden = query_hidden_dim or width // 2, head_hidden_dim or width // 2
    match name:
        case "classification":
            if not num_classes or num_classes < 2:
                raise ValueError(f"num_classes is {num_classes}; classification needs at least 2")
            return ClassificationTask(
                core,
                num_depths=num_depths,
                chunk_frames=mixing_chunk_frames,
                num_classes=num_classes,
                width=width,
                num_heads=heads,
                frame_loss_weight=frame_loss_weight,
            )
        case "box_tracking":
            return BoxTrackingTask(
                core,
                num_depths=num_depths,
                chunk_frames=mixing_chunk_frames,
                width=width,
                num_heads=heads,
                query_hidden_dim=query_hidden,
                num_frequencies=num_frequencies or (16 if reference else 8),
                reference=reference,
            )
        case "point_tracking":
            return PointTrackingTask(
                core,
                num_depths=num_depths,
                chunk_frames=mixing_chunk_frames,
                width=width,
                num_heads=heads,
                query_hidden_dim=query_hidden,
                head_hidden_dim=head_hidden,
                num_frequencies=num_frequencies or (16 if reference else 8),
                reference=reference,
            )
        case "depth":
            return DepthTask(
                core,
                num_depths=num_depths,
                chunk_frames=mixing_chunk_frames,
                image_size=image_size,
                width=width,
                num_heads=heads,
            )
        case "camera_pose":
            return CameraPoseTask(
                core,
                num_depths=num_depths,
                chunk_frames=mixing_chunk_frames,
                width=width,
                head_hidden_dim=head_hidden,
                standardize=standardize,
            )
        case _:
            assert_never(name)


def _published_heads(name: TaskName) -> int:
    """Return the heads of the published readout; the pose head has no attention.

    Source: Orlova et al. 2026 (arXiv 2605.19137), released inference code.
    """
    match name:
        case "classification":
            return 12
        case "box_tracking":
            return 4
        case "point_tracking":
            return 8
        case "depth":
            return 16
        case "camera_pose":
            return 1
        case _:
            assert_never(name)


__all__ = ["Task", "TaskName", "TaskState", "build_task"]
