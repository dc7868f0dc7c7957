"""The processes that train one trial together: which clips are whose, and how they agree.

Torch's process group joins them. Whoever starts the processes makes it: gloo on CPUs, nccl on GPUs.

Axes: B clips of a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

_T = TypeVar("_T")


class Part(NamedTuple):
    """What one process trains on in an epoch.

    Attributes:
        order: Positions of its clips, in the order of the epoch.
        batch_size: Its clips of a full batch.
        shares: For every step, the share of the batch's clips that are its own; the shares of all processes sum to 1.
    """

    order: Int64[np.ndarray, " clips"]
    batch_size: int
    shares: Sequence[float]


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of the processes that train a trial.

    Attributes:
        rank: Its number, from 0; the first one writes the trial's files.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Return this process's place in torch's process group; the only one if there is none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the trial's files."""
        return self.rank == 0

    def part(self, order: Int64[np.ndarray, " clips"], *, batch_size: int) -> Part:
        """Return this process's contiguous part of every batch.

        A process that would have no clip takes the first one, with a share of 0. So all processes compute gradients of
        the same parameters in every step.

        Args:
            order: Positions of all clips, in the order of the epoch.
            batch_size: Clips per step.
        """
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if self.size == 1:
            return Part(order, batch_size, [1.0] * len(batches))
        own = [np.array_split(batch, self.size)[self.rank] for batch in batches]
        shares = [len(mine) / len(batch) for mine, batch in zip(own, batches, strict=True)]
        own = [mine if len(mine) else batch[:1] for mine, batch in zip(own, batches, strict=True)]
        return Part(np.concatenate(own), len(own[0]), shares)

    def whole_batches(self, indices: Int64[np.ndarray, " clips"], *, batch_size: int) -> Int64[np.ndarray, " own"]:
        """Return the clips of the batches that this process predicts: every `size`-th one."""
        own = [
            indices[start : start + batch_size]
            for start in range(self.rank * batch_size, len(indices), self.size * batch_size)
        ]
        return np.concatenate(own) if own else indices[:0]

    def sum_gradients(self, parameters: Iterable[Tensor], loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Replace each gradient by the sum over all processes, and return the sum of their losses.

        Which parameters have a gradient must not depend on the clips.
        """
        if self.size == 1:
            return loss
        gradients = [each.grad for each in parameters if each.grad is not None]
        joined = torch.cat([loss.reshape(1), *(each.flatten() for each in gradients)])
        dist.all_reduce(joined)
        sums = joined[1:].split([each.numel() for each in gradients])
        for gradient, values in zip(gradients, sums, strict=True):
            gradient.copy_(values.view_as(gradient))
        return joined[0]

    @torch.no_grad()
    def align(self, tensors: Sequence[Tensor]) -> None:
        """Give the tensors of all processes the values of the first one's.

        Devices of different kinds round differently, so equal sums of gradients do not keep weights equal.
        """
        if self.size == 1:
            return
        for dtype in dict.fromkeys(each.dtype for each in tensors):
            same = [each for each in tensors if each.dtype == dtype]
            joined = torch.cat([each.flatten() for each in same])
            dist.broadcast(joined, 0)
            for each, values in zip(same, joined.split([each.numel() for each in same]), strict=True):
                each.copy_(values.view_as(each))

    def share(self, value: _T) -> _T:
        """Return the first process's value on all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, value: _T | None) -> list[_T]:
        """Return the values of all processes, without None, on the first one; an empty list on the others."""
        values: list[_T | None] = [value]
        if self.size > 1:
            values = [None] * self.size if self.is_first else []
            dist.gather_object(value, values if self.is_first else None)
        return [each for each in values if each is not None]


__all__ = ["Part", "Ranks"]
