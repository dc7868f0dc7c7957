"""The record of a task: everything the rest of vidflow needs of it. Each task's file defines its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidflow.config.tasks import TaskFacts
from vidflow.models.cores.temporal_core import TemporalCore
from vidflow.models.tasks.metrics.metric import Metric
from vidflow.models.tasks.options import TaskOptions
from vidflow.models.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TrivialAnswer:
    """The answer of a baseline that does not look at frames; a trial must score better.

    Attributes:
        words: What the answer is; completes `without looking: ...`.
        fit: Computes what the answer needs from the training split. It gets the ground truth clip by clip (batches of
            one) and the number of classes.
        answer: Returns predictions for a batch, in the task's format, from the result of `fit` and the ground truth.
    """

    words: str
    fit: Callable[[Iterator[dict[str, Tensor]], int], Tensor]
    answer: Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task.

    Attributes:
        facts: The facts about the task that need no torch.
        build: Builds the task's module around a core: loss, queries, predictions.
        build_metric: Builds an empty metric.
        trivial: The baseline to beat.
    """

    facts: TaskFacts
    build: Callable[[TemporalCore, TaskOptions], Task]
    build_metric: Callable[[], Metric]
    trivial: TrivialAnswer


def fit_nothing(targets: Iterator[dict[str, Tensor]], num_classes: int) -> Tensor:
    """Use nothing from the training split: the start of each track is given."""
    del targets, num_classes
    return torch.empty(0)
