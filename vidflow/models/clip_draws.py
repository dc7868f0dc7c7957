"""Random numbers of single clips: what a module draws for a clip in training depends on the clip and the epoch alone.

Torch's own generator gives numbers in the order in which clips pass through a module, so a draw from it would also
depend on the clips before, on the passes of a batch and on the number of processes.

Axes: B clips.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Generators = Callable[[str], Sequence[np.random.Generator]]
"""For the name of a purpose, fresh generators: one for each clip of the batch."""

_GENERATORS: ContextVar[Generators | None] = ContextVar("generators", default=None)


@contextmanager
def clip_draws(generators: Generators) -> Iterator[None]:
    """Let modules that are called within the context draw from the generators of a batch's clips."""
    token = _GENERATORS.set(generators)
    try:
        yield
    finally:
        _GENERATORS.reset(token)


def draw_uniform(num_clips: int, count: int, *, purpose: str, device: torch.device) -> Float[Tensor, "B count"]:
    """Draw numbers in [0, 1) for each clip of a batch; outside `clip_draws`, from torch's own generator.

    Args:
        num_clips: Clips of the batch.
        count: Numbers per clip.
        purpose: What they are for; another purpose gives other numbers.
        device: Where the result goes.
    """
    generators = _GENERATORS.get()
    if generators is None:
        return torch.rand(num_clips, count, device=device)
    rows = [generator.random(count, dtype=np.float32) for generator in generators(purpose)]
    assert len(rows) == num_clips, "one generator per clip"
    return torch.from_numpy(np.stack(rows)).to(device)


__all__ = ["Generators", "clip_draws", "draw_uniform"]
