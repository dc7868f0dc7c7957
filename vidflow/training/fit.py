"""Training of one module on cached features: a generator with one result per epoch, which can be killed at any moment.

What an epoch does depends on the seed, the number of the epoch and the snapshot before it, not on what the process did
earlier; so a trial that was killed and resumed equals an undisturbed one: bit for bit on a CPU with the same number of
threads, and on a GPU up to the order in which its kernels add.

Axes: B clips, T frames.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from vidflow.errors import ConfigError, DamagedError, VidflowError
from vidflow.models.tasks import Metric, Task
from vidflow.records import EpochResult
from vidflow.store.features import FeatureReader, clip_order
from vidflow.store.layout import TRIAL_RESULT, remove_leftovers
from vidflow.training.learner import Learner, seeded
from vidflow.training.optim import Precision, build_optimizer, learning_rate_at, load_moments, moments
from vidflow.training.snapshot import (
    BEST,
    LAST,
    PREDICTIONS,
    Snapshot,
    TrialIdentity,
    load_result,
    publish_best,
    read_snapshot,
    write_result,
    write_snapshot,
)

log = logging.getLogger(__name__)


def fit(
    task: Task,
    *,
    identity: TrialIdentity,
    reader: FeatureReader,
    directory: Path,
    train_indices: Int64[np.ndarray, " train"],
    val_indices: Int64[np.ndarray, " val"],
    arrays: Sequence[str],
    build_metric: Callable[[], Metric],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warmup_fraction: float,
    grad_clip: float,
    precision: Precision,
    objective: str,
    mode: Literal["max", "min"],
    seed: int,
    device: torch.device,
) -> Iterator[EpochResult]:
    """Train `task` and yield the result of every epoch that was not done before.

    Before a result is yielded, all that it says is on disk. The result of the last epoch comes after the mark of the
    finished trial, so whoever reports it may be killed for it. A trial that is completed yields nothing.

    Args:
        task: Module with its initial weights; trained in place.
        identity: Which trial it is.
        reader: Cached features.
        directory: Folder of the trial; a snapshot there is gone on from.
        train_indices: Clips to train on, as positions in the reader.
        val_indices: Clips to validate on.
        arrays: Annotations that the task needs.
        build_metric: Makes an empty metric, once per epoch.
        epochs: Passes over the training clips.
        batch_size: Clips per step.
        learning_rate: Largest learning rate.
        weight_decay: Decoupled weight decay.
        warmup_fraction: Share of the steps with rising learning rate, 0 to 1.
        grad_clip: Largest gradient norm.
        precision: Of predictions; `auto` is bfloat16 autocast on a GPU and float32 on a CPU.
        objective: Metric by which an epoch is the best.
        mode: Whether more of it is better.
        seed: Seed of the order of clips and of dropout.
        device: Where to train.

    Raises:
        VidflowError: If the loss is not finite, the objective is no metric of the task, or the folder is that of
            another trial.
    """
    done = load_result(directory)
    if done is not None and done.status == "completed":
        return
    remove_leftovers(directory)
    learner = Learner(
        key=identity.key,
        task=task.to(device),
        optimizer=build_optimizer(task, weight_decay=weight_decay),
        reader=reader,
        arrays=arrays,
        batch_size=batch_size,
        precision=precision,
        device=device,
    )
    history = _resume(directory, identity, learner)
    # The mark of an earlier stop or failure no longer holds once the weights change.
    (directory / TRIAL_RESULT).unlink(missing_ok=True)
    num_steps = math.ceil(len(train_indices) / batch_size)
    for epoch in range(len(history) + 1, epochs + 1):
        started = time.perf_counter()
        learning_rates = [
            learning_rate_at(step, num_steps=epochs * num_steps, peak=learning_rate, warmup_fraction=warmup_fraction)
            for step in range((epoch - 1) * num_steps, epoch * num_steps)
        ]
        order = train_indices[clip_order(len(train_indices), seed=seed, epoch=epoch)]
        with seeded(seed, epoch, device):
            metrics = learner.train(order, epoch=epoch, learning_rates=learning_rates, grad_clip=grad_clip)
            validated, predictions = learner.validate(val_indices, build_metric(), epoch=epoch)
        metrics |= validated
        is_best = _is_best(metrics, history, objective, mode)
        seconds = time.perf_counter() - started
        history.append(EpochResult(epoch=epoch, metrics=metrics, seconds=seconds, is_best=is_best))
        snapshot = Snapshot(
            identity=identity,
            history=tuple(history),
            model=task.state_dict(),
            optimizer=moments(learner.optimizer, task),
            predictions=predictions if is_best else {},
        )
        write_snapshot(directory, snapshot)
        if epoch < epochs:
            yield history[-1]
    write_result(directory, "completed")
    yield history[-1]


def _resume(directory: Path, identity: TrialIdentity, learner: Learner) -> list[EpochResult]:
    """Put the trial where its snapshot left it and return its history; without a usable one, at its start."""
    try:
        snapshot = read_snapshot(directory)
        if snapshot is not None:
            publish_best(directory, snapshot)
    except DamagedError as error:
        # Training is repeatable, so what was lost is time only.
        log.warning("trial %s starts again: %s", identity.key, error)
        snapshot = None
    if snapshot is None:
        for name in (LAST, PREDICTIONS, BEST):
            (directory / name).unlink(missing_ok=True)
        return []
    if snapshot.identity.key != identity.key:
        raise VidflowError(
            f"{directory}: holds trial {snapshot.identity.key}, wanted {identity.key}; "
            "give each trial a folder of its own"
        )
    learner.task.load_state_dict(snapshot.model)
    load_moments(learner.optimizer, learner.task, snapshot.optimizer)
    log.info("trial %s goes on after epoch %d", identity.key, len(snapshot.history))
    return list(snapshot.history)


def _is_best(
    metrics: dict[str, float], history: Sequence[EpochResult], objective: str, mode: Literal["max", "min"]
) -> bool:
    """Whether an epoch is better than all before it.

    Raises:
        ConfigError: If the objective is not among the metrics.
        VidflowError: If it is not finite, so that epochs cannot be ranked.
    """
    if objective not in metrics:
        raise ConfigError(f"trials.objective: got {objective!r}, wanted one of {', '.join(sorted(metrics))}")
    value = metrics[objective]
    if not math.isfinite(value):
        raise VidflowError(
            f"{objective} is {value} after epoch {len(history) + 1}, so epochs cannot be ranked by it; "
            "the validation split has nothing that it could be measured on"
        )
    earlier = [result.metrics[objective] for result in history]
    return not earlier or (value > max(earlier) if mode == "max" else value < min(earlier))
