"""One pass over clips: a training epoch with its steps, or a validation with its metrics.

Axes: B clips, T frames.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.clip_draws import clip_draws
from vidflow.models.tasks import Metric, Task
from vidflow.training.batches import Batch
from vidflow.training.encoded_task import EncodedTask
from vidflow.training.feeds import Feed, FrameBatch
from vidflow.training.optim import Optimisation, autocast, moments, step_optimizer, trained_parameters
from vidflow.training.predictions import Answers, KeptPredictions
from vidflow.training.ranks import Ranks
from vidflow.training.votes import Count
from vidflow.video.view_draws import clip_generator

# Reading the loss makes the host wait for the device, so it is not read at every step.
_STEPS_PER_CHECK = 50
_SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A module, its optimizer, and its clips.

    Attributes:
        key: Key of the trial, for messages.
        module: The task or, if the encoder runs in the trial, both; on `device`.
        optimizer: AdamW over its parameters.
        feed: Makes the batches.
        optimisation: How it is trained.
        device: Where the module is trained.
        clips_per_pass: Clips that go through the module at a time; None is a whole batch.
        videos: The video of each clip, by position, if the metric counts videos; None if it counts clips.
        ranks: The processes that train together. In each, `train` and `validate` are called with the clips of all.
    """

    key: str
    module: Task | EncodedTask
    optimizer: torch.optim.AdamW
    feed: Feed
    optimisation: Optimisation
    device: torch.device
    clips_per_pass: int | None = None
    videos: Sequence[str] | None = None
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def task(self) -> Task:
        """Depth mixing, core and readout."""
        return self.module.task if isinstance(self.module, EncodedTask) else self.module

    def align(self) -> None:
        """Give all processes the weights and the moments of the first one."""
        self.ranks.align([*self.module.state_dict().values(), *moments(self.optimizer, self.module).values()])

    def train(
        self,
        order: Int64[np.ndarray, " clips"],
        *,
        epoch: int,
        learning_rates: Sequence[float],
    ) -> dict[str, float]:
        """Take one step per batch and return `train/loss`, `train/learning_rate` and `train/clips_per_second`.

        If the encoder runs in the trial, also return `train/wait`: the share of the time that went by in waiting for
        data.

        Args:
            order: Positions of the clips, in the order of the epoch.
            epoch: Number of the epoch, for messages.
            learning_rates: One per step.

        Raises:
            VidflowError: If a loss is not finite.
        """
        self.module.train()
        started = time.perf_counter()
        waited = 0.0
        losses: list[Tensor] = []
        part = self.ranks.part(order, batch_size=self.optimisation.batch_size)
        batches = self.feed.batches(part.order, batch_size=part.batch_size, epoch=epoch)
        for learning_rate, share in zip(learning_rates, part.shares, strict=True):
            self._finish_step()
            waiting = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - waiting
            loss = self._accumulate(batch, share, epoch)
            del batch
            losses.append(self.ranks.sum_gradients(trained_parameters(self.optimizer), loss))
            step_optimizer(self.optimizer, learning_rate=learning_rate, grad_clip=self.optimisation.grad_clip)
            if len(losses) % _STEPS_PER_CHECK == 0:
                self._check(losses[-_STEPS_PER_CHECK:], epoch, len(losses) - _STEPS_PER_CHECK, learning_rates)
        assert next(batches, None) is None, "as many steps as batches"
        self._check(losses, epoch, 0, learning_rates)
        seconds = time.perf_counter() - started
        return {
            "train/loss": self._mean(losses, len(order), self.optimisation.batch_size),
            "train/learning_rate": learning_rates[-1],
            "train/clips_per_second": len(order) / seconds,
            **({"train/wait": waited / seconds} if isinstance(self.module, EncodedTask) else {}),
        }

    def _finish_step(self) -> None:
        """Wait for the step before if the encoder runs in the trial, so that what follows is waiting for data only.

        A step with an encoder takes far longer than to start its kernels, so nothing is lost.
        """
        if self.device.type == "cuda" and isinstance(self.module, EncodedTask):
            torch.cuda.synchronize(self.device)

    def _accumulate(self, batch: Batch | FrameBatch, share: float, epoch: int) -> Tensor:
        """Add the gradients of a batch's mean loss times `share`, pass by pass, and return that product."""
        num_clips = len(batch.indices)
        size = self.clips_per_pass or num_clips
        if size >= num_clips and share == 1:
            loss = self.task.loss(self._predict_drawn(batch, epoch), batch.targets)
            torch.autograd.backward(loss)
            return loss.detach()
        total = torch.zeros((), device=self.device)
        for start in range(0, num_clips, size):
            part = batch.part(start, start + size)
            loss = self.task.loss(self._predict_drawn(part, epoch), part.targets)
            loss = loss * (share * len(part.indices) / num_clips)
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def validate(
        self,
        indices: Int64[np.ndarray, " clips"],
        metric: Metric,
        *,
        epoch: int,
        use: Literal["val", "test"] = "val",
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return `val/loss` and the metric's values as `val/...`, and the predictions to keep, of what it counts.

        Each process predicts whole batches, so that they are those of a single process. The first process gets and
        counts all of them; the others return nothing.

        Args:
            indices: Positions of the clips.
            metric: A new metric of the task.
            epoch: Number of the epoch, for messages.
            use: What the clips are for; the metrics' names begin with it.

        Raises:
            VidflowError: If the loss is not finite, or the clips have nothing that the metric counts.
        """
        self.module.eval()
        losses: list[Tensor] = []
        kept = KeptPredictions()
        counted = Count(metric, self.videos)
        batch_size = min(self.optimisation.batch_size, self.clips_per_pass or self.optimisation.batch_size)
        with torch.inference_mode():
            for answers in self._answers(indices, batch_size):
                losses.append(answers.loss)
                counted.add(answers.indices.tolist(), answers.predictions, answers.targets)
                if counted.votes is None:
                    kept.add(answers)
        if not self.ranks.is_first:
            return {}, {}
        loss = self._mean(losses, len(indices), batch_size)
        if not math.isfinite(loss):
            raise VidflowError(
                f"trial {self.key}: the loss on the {_SPLITS[use]} split is {loss} after epoch {epoch}{_ADVICE}"
            )
        try:
            values = counted.compute()
        except ValueError as error:
            raise VidflowError(f"trial {self.key}: the {_SPLITS[use]} split cannot be measured: {error}") from error
        stored = kept.tensors() if counted.votes is None else counted.votes.tensors()
        return {f"{use}/loss": loss, **{f"{use}/{name}": value for name, value in values.items()}}, stored

    def _predict_drawn(self, batch: Batch | FrameBatch, epoch: int) -> dict[str, Tensor]:
        """Predict in training, where what a core draws for a clip depends on seed, epoch and clip alone."""

        def generators(purpose: str) -> list[np.random.Generator]:
            keys = (self.feed.clips.keys[index] for index in batch.indices.tolist())
            return [clip_generator(self.optimisation.seed, epoch, f"{purpose} {key}") for key in keys]

        with clip_draws(generators):
            return self._predict(batch)

    def _answers(self, indices: Int64[np.ndarray, " clips"], batch_size: int) -> Iterator[Answers]:
        """Yield the answers to all batches, in order; of several processes, the first one only."""
        own = self.ranks.whole_batches(indices, batch_size=batch_size)
        batches = self.feed.batches(own, batch_size=batch_size, epoch=None)
        for _ in range(math.ceil(len(indices) / (batch_size * self.ranks.size))):
            batch = next(batches, None)
            yield from self.ranks.gather(None if batch is None else self._answer(batch))

    def _answer(self, batch: Batch | FrameBatch) -> Answers:
        predictions = self._predict(batch)
        answers = Answers(batch.indices, batch.targets, predictions, self.task.loss(predictions, batch.targets))
        return answers if self.ranks.size == 1 else answers.cpu()

    def _predict(self, batch: Batch | FrameBatch) -> dict[str, Tensor]:
        with autocast(self.device, self.optimisation.precision):
            if isinstance(self.module, EncodedTask):
                predictions: dict[str, Tensor] = self.module(batch)
            else:
                assert isinstance(batch, Batch)
                predictions = self.module(batch.tokens, batch.prefix, self.module.queries_of(batch.targets))
        return predictions

    @staticmethod
    def _mean(losses: Sequence[Tensor], num_clips: int, batch_size: int) -> float:
        """Return the mean over clips from the means over batches; the last batch may be smaller."""
        sizes = torch.full((len(losses),), float(batch_size), dtype=torch.float64)
        sizes[-1] = num_clips - batch_size * (len(losses) - 1)
        return float(torch.stack(list(losses)).cpu().double() @ sizes / num_clips)

    def _check(self, losses: Sequence[Tensor], epoch: int, first_step: int, learning_rates: Sequence[float]) -> None:
        values = torch.stack(list(losses)).float().cpu()
        if bad := (~values.isfinite()).nonzero().flatten().tolist():
            step = first_step + bad[0]
            raise VidflowError(
                f"trial {self.key}: the loss is {values[bad[0]]} at step {step + 1} of {len(learning_rates)} in epoch "
                f"{epoch}, with learning rate {learning_rates[step]:.3g}{_ADVICE}"
            )


_ADVICE = "; try a smaller `learning_rate` or `grad_clip`, a larger `warmup_fraction`, or `precision: float32`"


@contextlib.contextmanager
def seeded(seed: int, epoch: int, device: torch.device, *, rank: int = 0) -> Iterator[None]:
    """Draw torch's random numbers from a separate stream, and restore the process's random state at the end.

    Args:
        seed: Seed of the trial.
        epoch: Number of the epoch; 0 is for the initial weights.
        device: Device whose generator is seeded in addition to the CPU's.
        rank: Number of the process, as processes that train together draw different numbers.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # SeedSequence gives different (seed, epoch) pairs different seeds; seed + epoch would not.
        entropy = [seed, epoch, rank] if rank else [seed, epoch]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        yield
