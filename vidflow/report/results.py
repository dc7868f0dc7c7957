"""Predictions of a trial, read from its folder for pictures.

Axes: V validation clips, or validation videos of a trial that is scored by video, n clips kept for pictures, C classes.
"""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.config.tasks import Prediction, TaskName, facts_of
from vidflow.records import TrialResult
from vidflow.report.tables import confusion_matrix
from vidflow.training.snapshot import PREDICTIONS, read_tensors

Counted = Literal["clip", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """Predictions of a classifier's best epoch.

    Attributes:
        indices: Each clip's position in its feature set; of a video, that of its first clip.
        labels: True classes.
        predicted: Most likely classes.
        probabilities: Their probabilities; of a video, the mean over its clips.
        num_classes: C.
        counted: What was answered.
    """

    indices: Int[np.ndarray, " V"]
    labels: Int[np.ndarray, " V"]
    predicted: Int[np.ndarray, " V"]
    probabilities: Float[np.ndarray, " V"]
    num_classes: int
    counted: Counted

    @property
    def confusion(self) -> Int[np.ndarray, "C C"]:
        """Clips or videos by true class (rows) and predicted class (columns)."""
        return confusion_matrix(self.labels, self.predicted, self.num_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictured:
    """Predictions of a dense task's best epoch on the first validation clips, enough for pictures.

    Attributes:
        indices: Each clip's position in its feature set.
        answers: Predictions by name, such as `boxes (n, O, T, 4)`; padded with zeros if clips differ in size.
    """

    indices: Int[np.ndarray, " n"]
    answers: dict[str, Tensor]


def read_pictured(result: TrialResult) -> Pictured | None:
    """Return a trial's predictions on the clips to draw, or None if it has none that can be drawn, or no epoch."""
    if result.best is None or _predicted_by(result) in ("classes", "tokens"):
        return None
    tensors, _ = read_tensors(result.directory / PREDICTIONS)
    indices = tensors.pop("indices").numpy()
    return Pictured(indices=indices, answers={name: tensor.float() for name, tensor in tensors.items()})


def read_classified(result: TrialResult) -> Classified | None:
    """Return a trial's predicted classes, or None if it is not a classifier or has no epoch."""
    if result.best is None or _predicted_by(result) != "classes":
        return None
    tensors, _ = read_tensors(result.directory / PREDICTIONS)
    probabilities, predicted = tensors["logits"].softmax(-1).max(-1)
    return Classified(
        indices=tensors["indices"].numpy(),
        labels=tensors["labels"].numpy(),
        predicted=predicted.numpy(),
        probabilities=probabilities.numpy(),
        num_classes=tensors["logits"].shape[-1],
        counted="video" if "num_clips" in tensors else "clip",
    )


def read_validated(result: TrialResult) -> list[int]:
    """Return the validation clips with stored predictions, as positions in the feature set; empty without an epoch.

    Of a trial that is scored by video, they are the first clips of the videos.
    """
    if result.best is None:
        return []
    indices: list[int] = read_tensors(result.directory / PREDICTIONS)[0]["indices"].tolist()
    return indices


def _predicted_by(result: TrialResult) -> Prediction:
    return facts_of(cast(TaskName, result.settings["task"])).predicts
