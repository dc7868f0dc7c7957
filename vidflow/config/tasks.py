"""What is known of a task without torch: what it predicts, what it learns from, and by what its trials are ranked."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never

TaskName = Literal["classification", "box_tracking", "point_tracking", "depth", "camera_pose"]
Mode = Literal["max", "min"]
Prediction = Literal["classes", "boxes", "points", "depth", "camera_motion"]
"""What a task says of a clip. The report draws, and `vidflow predict` writes, by this word and not by the task."""


class Objective(NamedTuple):
    """What epochs and trials are ranked by.

    Attributes:
        metric: Name, such as `val/top1`.
        mode: Whether more of it is better.
    """

    metric: str
    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """One task.

    Attributes:
        predicts: What it predicts.
        objective: What ranks its epochs and trials, unless the config names another metric.
        annotations: Arrays of a clip's ground truth that it learns from; none where labels are all it needs.
        needs_labels: Whether every clip must have a class.
    """

    predicts: Prediction
    objective: Objective
    annotations: tuple[str, ...] = ()
    needs_labels: bool = False


def facts_of(task: TaskName) -> TaskFacts:
    """Return what is known of a task."""
    match task:
        case "classification":
            return TaskFacts(predicts="classes", objective=Objective("val/top1", "max"), needs_labels=True)
        case "box_tracking":
            return TaskFacts(
                predicts="boxes", objective=Objective("val/miou", "max"), annotations=("boxes", "boxes_visible")
            )
        case "point_tracking":
            return TaskFacts(
                predicts="points",
                objective=Objective("val/average_jaccard", "max"),
                annotations=("points", "points_visible", "query_frames"),
            )
        case "depth":
            return TaskFacts(predicts="depth", objective=Objective("val/abs_rel", "min"), annotations=("depth",))
        case "camera_pose":
            return TaskFacts(
                predicts="camera_motion",
                objective=Objective("val/rpe_translation_mm", "min"),
                annotations=("camera_motion",),
            )
        case _:
            assert_never(task)


__all__ = ["Mode", "Objective", "Prediction", "TaskFacts", "TaskName", "facts_of"]
