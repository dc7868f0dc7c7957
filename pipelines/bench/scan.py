"""Mamba's scan against a plain loop over frames, forward and backward.

Axes: S sequences, T frames, E channels, n numbers of state per channel.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.bench.clock import ROUNDS, Ratio, Target, median, ratio, take_turns
from vidflow.models.cores.selective_scan import selective_scan

_STATE_DIM = 16
# Most numbers of state over all sequences and frames; the plain loop stores several of these for its gradient.
_MOST_NUMBERS = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRow:
    """The scan compared with the plain loop.

    Attributes:
        num_sequences: Tokens of all clips.
        num_frames: Steps of the recurrence.
        channels: Inner channels.
        seconds: Seconds of the scan and its gradient.
        plain: Seconds of the loop and its gradient.
        speedup: `plain` over `seconds`, as the median of the rounds.
    """

    num_sequences: int
    num_frames: int
    channels: int
    seconds: float
    plain: float
    speedup: Ratio

    def __str__(self) -> str:
        """Return the line."""
        return (
            f"scan: {self.num_sequences} sequences of {self.num_frames} frames and {self.channels} channels, forward "
            f"and backward in float32: {1e3 * self.seconds:.1f} ms, plain loop {1e3 * self.plain:.1f} ms, "
            f"{self.speedup} times as long"
        )


def measure_scan(
    target: Target, num_sequences: int, *, num_frames: int, channels: int, rounds: int = ROUNDS
) -> ScanRow:
    """Time both in turns; the number of sequences is limited by the memory of the loop's gradient."""
    num_sequences = max(1, min(num_sequences, _MOST_NUMBERS // (num_frames * channels * _STATE_DIM)))
    inputs = _draw(num_sequences, num_frames, channels, target.device)
    gradient = torch.randn(num_sequences, num_frames, channels, device=target.device)
    times = take_turns(
        {
            "plain": lambda: torch.autograd.grad(plain_scan(*inputs)[0], inputs, gradient),
            "ours": lambda: torch.autograd.grad(selective_scan(*inputs)[0], inputs, gradient),
        },
        target.device,
        rounds=rounds,
    )
    return ScanRow(
        num_sequences=num_sequences,
        num_frames=num_frames,
        channels=channels,
        seconds=median(times["ours"]),
        plain=median(times["plain"]),
        speedup=ratio(times["plain"], times["ours"]),
    )


def plain_scan(
    delta: Float[Tensor, "S T E"],
    x: Float[Tensor, "S T E"],
    decay: Float[Tensor, "n E"],
    b: Float[Tensor, "S T n"],
    c: Float[Tensor, "S T n"],
    state: Float[Tensor, "S n E"],
) -> tuple[Float[Tensor, "S T E"], Float[Tensor, "S n E"]]:
    """Run the recurrence of `selective_scan` frame by frame, as in the paper, with autograd's gradient.

    Source: Gu and Dao 2023, Mamba (arXiv 2312.00752), section 3.2; states (S, E, n), as there.
    """
    decay, state = decay.t(), state.transpose(1, 2)
    outputs = []
    for t in range(delta.shape[1]):
        drive = (delta[:, t] * x[:, t])[..., None] * b[:, t, None]
        state = torch.exp(delta[:, t, :, None] * decay) * state + drive
        outputs.append((state * c[:, t, None]).sum(-1))
    return torch.stack(outputs, 1), state.transpose(1, 2)


def _draw(sequences: int, frames: int, channels: int, device: torch.device) -> tuple[Tensor, ...]:
    """Draw delta, x, decay, b, c and state."""
    parts = (
        torch.nn.functional.softplus(torch.randn(sequences, frames, channels, device=device) - 2),
        torch.randn(sequences, frames, channels, device=device),
        -torch.randn(_STATE_DIM, channels, device=device).exp(),
        torch.randn(sequences, frames, _STATE_DIM, device=device),
        torch.randn(sequences, frames, _STATE_DIM, device=device),
        torch.randn(sequences, _STATE_DIM, channels, device=device),
    )
    return tuple(part.requires_grad_() for part in parts)
