"""What the rest of vidflow asks of a task, in one record that stands in the task's own file."""

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
    """What can be answered without learning from pictures: the floor that a trial has to leave behind.

    Attributes:
        words: What the answer is; completes `without looking: ...`.
        fit: Makes what the answer takes from the training split, of its ground truth clip by clip (batches of one) and
            the number of classes.
        answer: Answers for a batch, of what `fit` made and the ground truth, in the form of the task's predictions.
    """

    words: str
    fit: Callable[[Iterator[dict[str, Tensor]], int], Tensor]
    answer: Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task.

    Attributes:
        facts: What is known of it without torch.
        build: Its module around a core: loss, queries, predictions.
        build_metric: Makes an empty metric.
        trivial: The answer to beat.
    """

    facts: TaskFacts
    build: Callable[[TemporalCore, TaskOptions], Task]
    build_metric: Callable[[], Metric]
    trivial: TrivialAnswer


def fit_nothing(targets: Iterator[dict[str, Tensor]], num_classes: int) -> Tensor:
    """Take nothing from the training split: tracks are given a start."""
    del targets, num_classes
    return torch.empty(0)
