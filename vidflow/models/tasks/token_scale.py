"""Standardise frozen features, channel by channel, to zero mean and unit standard deviation.

Axes: B clips, T frames, K tapped depths, N patch tokens, P prefix tokens, D width.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

_EPS = 1e-4


class TokenScale(nn.Module):
    """Subtracts each channel's mean and divides by its standard deviation, both measured once and kept as buffers.

    Frozen encoders have channels with a large constant value; the changes from frame to frame are small against it.
    Norms inside a core divide by this constant; `TokenScale` removes it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_depths: int, embed_dim: int) -> None:
        """Start with mean 0 and deviation 1, which change nothing."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_depths, 1, embed_dim))
        self.register_buffer("deviation", torch.ones(num_depths, 1, embed_dim))

    def measure(self, clips: Iterable[Float[Tensor, "T K N D"]]) -> None:
        """Measure mean and deviation on clips; the same clips in the same order give the same bits."""
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        for clip in clips:
            rows = clip.double()
            count += rows.shape[0] * rows.shape[2]
            total, squares = total + rows.sum((0, 2)), squares + rows.square().sum((0, 2))
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self.mean.copy_(mean[:, None])
        self.deviation.copy_(variance.sqrt()[:, None] + _EPS)

    def forward(
        self, tokens: Float[Tensor, "B T K N D"], prefix: Float[Tensor, "B T P D"] | None
    ) -> tuple[Float[Tensor, "B T K N D"], Float[Tensor, "B T P D"] | None]:
        """Scale patch tokens with the statistics of their depth, and prefix tokens with those of the last depth."""
        if prefix is not None:
            prefix = (prefix - self.mean[-1]) / self.deviation[-1]
        return (tokens - self.mean) / self.deviation, prefix
