"""Training of one module: a generator with one result per epoch, which can be killed at any moment.

An epoch depends on the seed, the epoch's number and the snapshot before it, and on nothing else that the process did.
So a trial that was killed and resumed equals one that was not killed: bit for bit on a CPU with the same number of
threads and processes, and on a GPU up to the order in which its kernels add. Trials with different numbers of processes
are equal up to rounding and the draws of dropout.

Axes: B clips, T frames.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vidflow.config.tasks import Objective
from vidflow.errors import ConfigError, DamagedError, VidflowError
from vidflow.models.tasks import Task, TaskSpec
from vidflow.records import EpochResult
from vidflow.store.features import clip_order
from vidflow.store.layout import TRIAL_RESULT, remove, remove_leftovers
from vidflow.training.batches import Splits
from vidflow.training.encoded_task import EncodedTask
from vidflow.training.feeds import Feed
from vidflow.training.learner import Learner, seeded
from vidflow.training.optim import Optimisation, build_optimizer, learning_rates, load_moments, moments
from vidflow.training.ranks import Ranks
from vidflow.training.snapshot import (
    BEST,
    LAST,
    PREDICTIONS,
    Snapshot,
    TrialIdentity,
    load_result,
    publish_best,
    read_snapshot,
    read_tensors,
    write_result,
    write_snapshot,
)

log = logging.getLogger(__name__)


def fit(
    module: Task | EncodedTask,
    spec: TaskSpec,
    feed: Feed,
    splits: Splits,
    *,
    identity: TrialIdentity,
    directory: Path,
    optimisation: Optimisation,
    objective: Objective,
    device: torch.device,
    clips_per_pass: int | None = None,
    videos: Sequence[str] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Iterator[EpochResult]:
    """Train `module` and yield the result of every epoch that was not done before.

    All that a result describes is on disk before it is yielded. The last result is yielded after the trial is marked
    as finished, so the process may be killed as soon as it reports it. A completed trial yields nothing. The metrics of
    the last epoch include those of the best epoch's weights on the test split, if there is one.

    Args:
        module: The task or, if the encoder runs in the trial, both, with initial weights; trained in place.
        spec: Spec of the task, with its metric.
        feed: Makes the batches.
        splits: Its clips.
        identity: Which trial it is.
        directory: Folder of the trial; training resumes from a snapshot if there is one.
        optimisation: How it is trained.
        objective: Metric by which the best epoch is chosen.
        device: Where to train.
        clips_per_pass: Clips that go through the module at a time; None is a whole batch.
        videos: The video of each clip, by position, if the metric counts videos; None if it counts clips.
        ranks: The processes that train together. Each yields the same results, but the first one alone uses the folder.

    Raises:
        VidflowError: If the loss is not finite, the objective is not a metric of the task, or the folder belongs to
            another trial.
    """
    if ranks.share(ranks.is_first and _is_completed(directory)):
        return
    if ranks.is_first:
        remove_leftovers(directory)
    learner = Learner(
        key=identity.key,
        module=module.to(device),
        optimizer=build_optimizer(
            module, weight_decay=optimisation.weight_decay, encoder_rate=optimisation.encoder_rate
        ),
        feed=feed,
        optimisation=optimisation,
        device=device,
        clips_per_pass=clips_per_pass,
        videos=videos,
        ranks=ranks,
    )
    history = _resume(directory, identity, learner)
    # The mark of an earlier stop or failure is no longer true once the weights change.
    if ranks.is_first:
        remove(directory / TRIAL_RESULT)
    for epoch in range(len(history) + 1, optimisation.epochs + 1):
        started = time.perf_counter()
        order = splits.train[clip_order(len(splits.train), seed=optimisation.seed, epoch=epoch)]
        rates = learning_rates(optimisation, epoch=epoch, num_clips=len(order))
        learner.align()
        with seeded(optimisation.seed, epoch, device, rank=ranks.rank):
            metrics = learner.train(order, epoch=epoch, learning_rates=rates)
            validated, predictions = learner.validate(splits.val, spec.build_metric(), epoch=epoch)
        metrics = ranks.share(metrics | validated)
        is_best = _is_best(metrics, history, objective)
        if splits.test is not None and epoch == optimisation.epochs:
            metrics |= _test(
                learner, _best_weights(learner, directory, is_best=is_best), splits.test, spec, epoch=epoch
            )
        seconds = time.perf_counter() - started
        history.append(ranks.share(EpochResult(epoch=epoch, metrics=metrics, seconds=seconds, is_best=is_best)))
        snapshot = Snapshot(
            identity=identity,
            history=tuple(history),
            model=module.state_dict(),
            optimizer=moments(learner.optimizer, module),
            predictions=predictions if is_best else {},
        )
        if ranks.is_first:
            write_snapshot(directory, snapshot)
        if epoch < optimisation.epochs:
            yield history[-1]
    if ranks.is_first:
        write_result(directory, "completed")
    yield history[-1]


def _is_completed(directory: Path) -> bool:
    done = load_result(directory)
    return done is not None and done.status == "completed"


def _resume(directory: Path, identity: TrialIdentity, learner: Learner) -> list[EpochResult]:
    """Restore the trial from its snapshot and return its history; without a usable snapshot it starts again."""
    snapshot = learner.ranks.share(_usable_snapshot(directory, identity.key) if learner.ranks.is_first else None)
    if snapshot is None:
        return []
    if snapshot.identity.key != identity.key:
        raise VidflowError(
            f"{directory}: holds trial {snapshot.identity.key}, wanted {identity.key}; "
            "give each trial a folder of its own"
        )
    learner.module.load_state_dict(snapshot.model)
    load_moments(learner.optimizer, learner.module, snapshot.optimizer)
    log.info("trial %s resumes after epoch %d", identity.key, len(snapshot.history))
    return list(snapshot.history)


def _usable_snapshot(directory: Path, key: str) -> Snapshot | None:
    """Return the snapshot; None if there is none or it is damaged, and then the folder is cleared."""
    try:
        snapshot = read_snapshot(directory)
        if snapshot is not None:
            publish_best(directory, snapshot)
    except DamagedError as error:
        # Training is repeatable, so only time was lost.
        log.warning("trial %s starts again: %s", key, error)
        snapshot = None
    if snapshot is None:
        for name in (LAST, PREDICTIONS, BEST):
            remove(directory / name)
    return snapshot


def _best_weights(learner: Learner, directory: Path, *, is_best: bool) -> dict[str, Tensor]:
    """Return the best epoch's weights, which are the present ones or those in the folder."""
    if is_best:
        return learner.module.state_dict()
    return learner.ranks.share(read_tensors(directory / BEST)[0] if learner.ranks.is_first else {})


def _test(
    learner: Learner, best: dict[str, Tensor], indices: Int64[np.ndarray, " clips"], spec: TaskSpec, *, epoch: int
) -> dict[str, float]:
    """Return the metrics `test/...` of the best epoch's weights; the module keeps those that it has."""
    kept = {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}
    learner.module.load_state_dict(best)
    metrics, _ = learner.validate(indices, spec.build_metric(), epoch=epoch, use="test")
    learner.module.load_state_dict(kept)
    return metrics


def _is_best(metrics: dict[str, float], history: Sequence[EpochResult], objective: Objective) -> bool:
    """Whether an epoch is better than all before it.

    Raises:
        ConfigError: If the objective is not among the metrics.
        VidflowError: If the objective is not finite, so that epochs cannot be ranked.
    """
    metric, mode = objective
    if metric not in metrics:
        raise ConfigError(f"trials.objective: got {metric!r}, wanted one of {', '.join(sorted(metrics))}")
    value = metrics[metric]
    if not math.isfinite(value):
        raise VidflowError(
            f"{metric} is {value} after epoch {len(history) + 1}, so epochs cannot be ranked by it; "
            "the validation split has nothing that it could be measured on"
        )
    earlier = [result.metrics[metric] for result in history]
    return not earlier or (value > max(earlier) if mode == "max" else value < min(earlier))
