"""The tasks, and functions that choose a task, its module or its metric by name."""

from typing import assert_never

from vidflow.config.tasks import TaskName
from vidflow.models.cores.temporal_core import TemporalCore
from vidflow.models.cores.token_adapter import TokenAdapter
from vidflow.models.tasks.box_tracking import BOX_TRACKING
from vidflow.models.tasks.camera_pose import CAMERA_POSE
from vidflow.models.tasks.classification import CLASSIFICATION
from vidflow.models.tasks.depth import DEPTH
from vidflow.models.tasks.masked_tokens import MASKED_TOKENS
from vidflow.models.tasks.metrics.metric import Metric
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.point_tracking import POINT_TRACKING
from vidflow.models.tasks.spec import TaskSpec
from vidflow.models.tasks.task import Task, TaskState


def spec_of(task: TaskName) -> TaskSpec:
    """Return the record of a task."""
    match task:
        case "classification":
            return CLASSIFICATION
        case "box_tracking":
            return BOX_TRACKING
        case "point_tracking":
            return POINT_TRACKING
        case "depth":
            return DEPTH
        case "camera_pose":
            return CAMERA_POSE
        case "masked_tokens":
            return MASKED_TOKENS
        case _:
            assert_never(task)


def build_task(task: TaskName, core: TemporalCore, options: TaskOptions) -> Task:
    """Build a task around a core; share the core with nothing else.

    Raises:
        ValueError: A width does not fit, `num_classes` is missing, or the core gives no tokens of each frame.
    """
    if task != "classification" and core.output_dim != core.embed_dim:
        raise ValueError(f"{type(core).__name__} gives one token of a group of frames; only classification can read it")
    built = spec_of(task).build(core, options)
    if options.adapter_rank:
        # Built last, so that all other weights start as they do without it.
        built.token_adapter = TokenAdapter(core.embed_dim, options.adapter_rank)
    return built


def build_metric(task: TaskName) -> Metric:
    """Build the empty metric of a task."""
    return spec_of(task).build_metric()


__all__ = ["Metric", "Task", "TaskOptions", "TaskSpec", "TaskState", "build_metric", "build_task", "spec_of"]
