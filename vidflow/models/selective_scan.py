"""The selective scan of Mamba-1 in plain torch, with a gradient that keeps the inputs only and recomputes the rest.

Axes: S sequences, T steps, E channels, n numbers of state per channel, R sequences of one block. The state is laid out
(S, n, E), channels innermost, so that elementwise operations run along contiguous channels and sums over n or E are
matrix products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers of state per block and step: small enough for the cache of a core, large enough to hide the cost of a call.
_CPU_STEP = 3 << 16
_DEVICE_STEP = 1 << 25
# Numbers of state per block over all steps, which the backward pass recomputes and holds one block at a time.
_CPU_HISTORY = 1 << 24
_DEVICE_HISTORY = 1 << 28


def selective_scan(
    delta: Float[Tensor, "S T E"],
    x: Float[Tensor, "S T E"],
    decay: Float[Tensor, "n E"],
    b: Float[Tensor, "S T n"],
    c: Float[Tensor, "S T n"],
    state: Float[Tensor, "S n E"],
) -> tuple[Float[Tensor, "S T E"], Float[Tensor, "S n E"]]:
    """Run h_t = exp(delta_t decay) h_{t-1} + delta_t x_t b_t and y_t = sum over n of h_t c_t.

    Computed in single precision or better whatever autocast says. Beyond arguments and results it holds the states of
    one block of sequences: nothing of size S T E n exists, neither forward nor backward.

    Args:
        delta: Step sizes, positive.
        x: Inputs.
        decay: Rates A, negative.
        b: Input weights, shared by the channels.
        c: Output weights, shared by the channels.
        state: The state before the first step.

    Returns:
        The outputs, and the state after the last step.

    Source: Gu and Dao 2023, Mamba (arXiv 2312.00752), section 3.2; zero-order hold for A and Euler for B.
    """
    inputs = (delta, x, decay, b, c, state)
    dtype = reduce(torch.promote_types, (part.dtype for part in inputs), torch.float32)
    with torch.autocast(delta.device.type, enabled=False):
        y: Tensor
        last: Tensor
        y, last = _Scan.apply(*(part.to(dtype) for part in inputs))
    return y, last


@dataclass(slots=True)
class _Block:
    """The arguments of the scan for R sequences, steps first, so that every step is contiguous."""

    delta: Float[Tensor, "T R E"]
    x: Float[Tensor, "T R E"]
    decay: Float[Tensor, "n E"]
    b: Float[Tensor, "T R n"]
    c: Float[Tensor, "T R n"]
    state: Float[Tensor, "R n E"]
    drive: Float[Tensor, "T R E"]

    def advance(self, t: int, state: Tensor, factor: Tensor, out: Tensor) -> None:
        """Write exp(delta_t decay) to `factor` and the next state to `out`, which may be `state` itself."""
        torch.mul(self.delta[t, :, None], self.decay, out=factor).exp_()
        torch.mul(state, factor, out=out).addcmul_(self.b[t, :, :, None], self.drive[t, :, None])


def _blocks(
    delta: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Iterator[tuple[slice, _Block]]:
    num_sequences, num_steps, _ = delta.shape
    is_cpu = delta.device.type == "cpu"
    per_step = (_CPU_STEP if is_cpu else _DEVICE_STEP) // decay.numel()
    in_history = (_CPU_HISTORY if is_cpu else _DEVICE_HISTORY) // (decay.numel() * num_steps)
    num_rows = max(1, min(per_step, in_history))
    for start in range(0, num_sequences, num_rows):
        where = slice(start, min(start + num_rows, num_sequences))
        steps = [_steps_first(part[where]) for part in (delta, x, b, c)]
        yield where, _Block(steps[0], steps[1], decay, steps[2], steps[3], state[where], steps[0] * steps[1])


def _steps_first(part: Tensor) -> Tensor:
    return part.transpose(0, 1).contiguous()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        y, last = torch.empty_like(inputs[0]), torch.empty_like(inputs[-1])
        for rows, block in _blocks(*inputs):
            state, factor = block.state.clone(), torch.empty_like(block.state)
            outputs = torch.empty_like(block.x)
            for t in range(len(outputs)):
                block.advance(t, state, factor, out=state)
                torch.bmm(block.c[t, :, None], state, out=outputs[t, :, None])
            y[rows], last[rows] = outputs.transpose(0, 1), state
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        inputs: tuple[Tensor, ...] = ctx.saved_tensors
        grads = tuple(torch.empty_like(part) for part in inputs)
        ddecay = grads[2].zero_()
        with torch.autocast(dy.device.type, enabled=False):
            for rows, block in _blocks(*inputs):
                parts = _block_gradient(block, _steps_first(dy[rows]), dlast[rows].clone())
                for whole, part in zip((*grads[:2], *grads[3:5]), parts[:4], strict=True):
                    whole[rows] = part.transpose(0, 1)
                ddecay += parts[4]
                grads[5][rows] = parts[5]
        return grads


def _block_gradient(block: _Block, dy: Float[Tensor, "T R E"], dstate: Float[Tensor, "R n E"]) -> tuple[Tensor, ...]:
    """Recompute the states of a block, then go back through them.

    With G_t the gradient of h_t and a_t = exp(delta_t A), backwards in t: G_t = dy_t c_t + a_{t+1} G_{t+1};
    dc_t = sum_e dy_t h_t; db_t = sum_e delta_t x_t G_t; dx_t = delta_t (b_t G_t); and with P_t = G_t a_t h_{t-1},
    dA = sum_t P_t delta_t and ddelta_t = sum_n P_t A + x_t (b_t G_t).

    Args:
        block: The arguments.
        dy: Gradient of the outputs.
        dstate: Gradient of the last state; overwritten.

    Returns:
        Gradients of delta, x, b, c (steps first), decay and the first state.
    """
    num_steps = len(dy)
    history = torch.empty((num_steps, *block.state.shape), dtype=dy.dtype, device=dy.device)
    factors = torch.empty_like(history)
    states = [block.state, *history.unbind(0)]
    for t in range(num_steps):
        block.advance(t, states[t], factors[t], out=states[t + 1])
    ddelta, carried = torch.empty_like(dy), torch.empty_like(dy)
    db, dc = torch.empty_like(block.b), torch.empty_like(block.c)
    ddecay = torch.zeros_like(dstate)
    for t in reversed(range(num_steps)):
        dstate.addcmul_(block.c[t, :, :, None], dy[t, :, None])
        torch.bmm(states[t + 1], dy[t, :, :, None], out=dc[t, :, :, None])
        torch.bmm(dstate, block.drive[t, :, :, None], out=db[t, :, :, None])
        torch.bmm(block.b[t, :, None], dstate, out=carried[t, :, None])
        dstate.mul_(factors[t])
        # The state after this step has been used, so its memory takes the product.
        product = torch.mul(states[t], dstate, out=states[t + 1])
        ddecay.addcmul_(product, block.delta[t, :, None])
        torch.sum(product.mul_(block.decay), 1, out=ddelta[t])
    ddelta.addcmul_(carried, block.x)
    return ddelta, carried.mul_(block.delta), db, dc, ddecay.sum(0), dstate
