"""What a task's metrics are without any learning from pictures: the floor that a trial has to leave behind.

Axes: T frames, C classes, O boxes, Q points, H and W pixels.
"""

from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidflow.config.schema import TaskName
from vidflow.errors import VidflowError
from vidflow.models.tasks.depth import valid_depth
from vidflow.models.tasks.metrics import build_metric
from vidflow.store.features import FeatureReader
from vidflow.training.batches import read_annotations, spread
from vidflow.training.trial import annotations_of

# Training clips, spread evenly, that a mean is taken over: more would change it little and cost minutes.
_FITTED_CLIPS = 512
# A logit that stands for certainty.
_CERTAIN = 10.0


def baseline_metrics(task: TaskName, reader: FeatureReader) -> dict[str, float]:
    """Return the trivial answer's metrics on the validation split, named as a trial's are, such as `val/top1`.

    They are computed by the trial's own metric over the same clips; `describe_baseline` says what the answer is.

    Args:
        task: What is learnt.
        reader: Any feature set of the experiment; only its labels and annotations are read.

    Raises:
        VidflowError: If a clip lacks an annotation, or the split holds nothing that the metric counts.
    """
    splits = np.asarray(reader.splits)
    fitted = _fit(task, reader, np.flatnonzero(splits == "train"))
    metric = build_metric(task)
    for index in np.flatnonzero(splits == "val"):
        targets = _targets(task, reader, int(index))
        metric.update(_answer(task, fitted, targets), targets)
    try:
        values = metric.compute()
    except ValueError as error:
        raise VidflowError(f"{reader.directory}: the validation split cannot be measured: {error}") from error
    return {f"val/{name}": value for name, value in values.items()}


def describe_baseline(task: TaskName) -> str:
    """Return what the trivial answer is, in words that complete `without looking: ...`."""
    match task:
        case "classification":
            return "the most frequent class of the training split"
        case "box_tracking":
            return "the box stays where it was given"
        case "point_tracking":
            return "the point stays where it was given, in sight"
        case "depth":
            return "the mean depth map of the training split"
        case "camera_pose":
            return "the mean motion of the training split"
        case _:
            assert_never(task)


def _fit(task: TaskName, reader: FeatureReader, train: Int64[np.ndarray, " clips"]) -> Tensor:
    """Return what the answer takes from the training split; nothing for the tasks that are given a start."""
    match task:
        case "classification":
            counts = np.bincount(np.asarray(reader.labels)[train], minlength=len(reader.metadata["class_names"]))
            return torch.from_numpy(counts).float()
        case "box_tracking" | "point_tracking":
            return torch.empty(0)
        case "depth":
            return _mean_depth(reader, spread(train, most=_FITTED_CLIPS))
        case "camera_pose":
            chosen = spread(train, most=_FITTED_CLIPS)
            motions = [_targets(task, reader, int(index))["camera_motion"][0, 1:] for index in chosen]
            return torch.cat(motions).mean(0)
        case _:
            assert_never(task)


def _mean_depth(reader: FeatureReader, indices: Int64[np.ndarray, " clips"]) -> Float[Tensor, "H W"]:
    """Average the valid depths of all frames pixel by pixel; a pixel without any gets the mean of all pixels."""
    total, count = torch.zeros(()), torch.zeros(())
    for index in indices:
        depth = _targets("depth", reader, int(index))["depth"][0].double()
        mask = valid_depth(depth)
        total, count = total + depth.where(mask, 0.0).sum(0), count + mask.sum(0)
    overall = total.sum() / count.sum().clamp(min=1)
    return torch.where(count > 0, total / count.clamp(min=1), overall).float()


def _answer(task: TaskName, fitted: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the trivial answer for one clip, in the form of a task's predictions."""
    match task:
        case "classification":
            return {"logits": fitted[None, None]}
        case "box_tracking":
            first = targets["boxes_visible"].int().argmax(-1)
            return {"boxes": _held(targets["boxes"], first)}
        case "point_tracking":
            certain = torch.full(targets["points_visible"].shape, _CERTAIN)
            points = _held(targets["points"], targets["query_frames"])
            return {"points": points, "visibility_logits": certain, "uncertainty_logits": -certain}
        case "depth":
            return {"depth": fitted.expand_as(targets["depth"])}
        case "camera_pose":
            return {"camera_motion": fitted.expand_as(targets["camera_motion"])}
        case _:
            assert_never(task)


def _held(tracks: Tensor, frames: Tensor) -> Tensor:
    """Return tracks (B, O, T, c) that stay where they are at one frame each, `frames` (B, O)."""
    start = frames[..., None, None].expand(-1, -1, 1, tracks.shape[-1])
    return tracks.gather(2, start).expand_as(tracks)


def _targets(task: TaskName, reader: FeatureReader, index: int) -> dict[str, Tensor]:
    """Return the ground truth of one clip as a batch of one."""
    if task == "classification":
        return {"label": torch.tensor([reader.labels[index]])}
    arrays = read_annotations(reader[index], annotations_of(task))
    return {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
