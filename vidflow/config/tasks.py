"""What is known of a task without torch: what it predicts, what it learns from, and by what its trials are ranked."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never

TaskName = Literal["classification", "box_tracking", "point_tracking", "depth", "camera_pose", "masked_tokens"]
Mode = Literal["max", "min"]
Prediction = Literal["classes", "boxes", "points", "depth", "camera_motion", "tokens"]
"""What a task says of a clip. The report draws, and `vidflow predict` writes, by this word and not by the task.

A task that predicts `tokens` only trains a core, for `init_from` of other trials: there is nothing to draw or write.
"""


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
        truth: Array of a video's annotation file that they are made from; empty where labels are all it needs.
        needs_labels: Whether every clip must have a class.
        metrics: What it measures on the validation split, without `val/`.
        min_frames: Frames that a clip must have.
        hides_frames: Whether it hides frames from its core, for which a batch needs random numbers.
    """

    predicts: Prediction
    objective: Objective
    annotations: tuple[str, ...] = ()
    truth: str = ""
    needs_labels: bool = False
    metrics: tuple[str, ...]
    min_frames: int = 1
    hides_frames: bool = False

    def list_objectives(self) -> list[str]:
        """Return the names of all metrics that can rank epochs and trials."""
        training = ("train/loss", "train/learning_rate", "train/clips_per_second")
        return ["val/loss", *(f"val/{name}" for name in self.metrics), *training]


def facts_of(task: TaskName) -> TaskFacts:
    """Return what is known of a task."""
    match task:
        case "classification":
            return TaskFacts(
                predicts="classes",
                objective=Objective("val/top1", "max"),
                needs_labels=True,
                metrics=("top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high"),
            )
        case "box_tracking":
            return TaskFacts(
                predicts="boxes",
                objective=Objective("val/miou", "max"),
                annotations=("boxes", "boxes_visible"),
                truth="boxes",
                metrics=("miou",),
                min_frames=2,
            )
        case "point_tracking":
            return TaskFacts(
                predicts="points",
                objective=Objective("val/average_jaccard", "max"),
                annotations=("points", "points_visible", "query_frames"),
                truth="points",
                metrics=("average_jaccard", "delta_avg", "occlusion_accuracy"),
                min_frames=2,
            )
        case "depth":
            return TaskFacts(
                predicts="depth",
                objective=Objective("val/abs_rel", "min"),
                annotations=("depth",),
                truth="depth",
                metrics=("abs_rel", "abs_rel_per_image", "delta1"),
            )
        case "camera_pose":
            return TaskFacts(
                predicts="camera_motion",
                objective=Objective("val/rpe_translation_mm", "min"),
                annotations=("camera_motion",),
                truth="camera_pose",
                metrics=(
                    "rpe_translation_mm",
                    "rpe_translation_mm_rmse",
                    "rpe_rotation_deg",
                    "rpe_rotation_deg_rmse",
                ),
                min_frames=2,
            )
        case "masked_tokens":
            return TaskFacts(
                predicts="tokens",
                objective=Objective("val/masked_mse", "min"),
                metrics=("masked_mse", "masked_cosine", "copied_mse", "copied_cosine"),
                min_frames=2,
                hides_frames=True,
            )
        case _:
            assert_never(task)


def count_visible(num_frames: int, mask_ratio: float) -> int:
    """Return how many frames of a clip `masked_tokens` leaves visible."""
    # 10 * (1 - 0.9) is a little less than 1.
    return int(num_frames * (1 - mask_ratio) + 1e-9)


__all__ = ["Mode", "Objective", "Prediction", "TaskFacts", "TaskName", "count_visible", "facts_of"]
