"""The selective scan of Mamba-1 in plain torch; its backward pass stores only the inputs and recomputes the states.

Axes: S sequences, T steps, E channels, n state size per channel, R sequences of one block. The state's layout is
(S, n, E), channels innermost: elementwise operations run along contiguous channels, and sums over n or E are matrix
products.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# State elements per block, step and thread: few enough for the cache of a CPU core, enough to hide the cost of a call.
# On an accelerator: state elements per block and step.
_CPU_STEP = 3 << 15
_DEVICE_STEP = 1 << 25
# State elements per block over all steps; the backward pass recomputes and stores one block at a time.
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

    Computed in at least single precision, also under autocast. Beside arguments and results, only the states of one
    block of sequences are in memory: no tensor of size S T E n exists, neither forward nor backward.

    Args:
        delta: Step sizes, positive.
        x: Inputs.
        decay: Decay rates A, negative.
        b: Input weights, shared by all channels.
        c: Output weights, shared by all channels.
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


class _Block:
    """The arguments of the scan for R sequences, steps first, and views of every step, made once.

    A view whose name ends in `row` is a row over E or n. Other views are columns over n or E, for broadcasting.
    """

    def __init__(self, delta: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> None:
        self.delta, self.x, self.b, self.c = (part.transpose(0, 1).contiguous() for part in (delta, x, b, c))
        self.decay, self.state = decay, state
        self.drive = self.delta * self.x
        self.delta_row = self.delta[:, :, None].unbind(0)
        self.drive_row = self.drive[:, :, None].unbind(0)
        self.b_row, self.b_column = self.b[:, :, None].unbind(0), self.b[..., None].unbind(0)
        self.c_row, self.c_column = self.c[:, :, None].unbind(0), self.c[..., None].unbind(0)

    def advance(self, t: int, state: Tensor, factor: Tensor, out: Tensor) -> None:
        """Write exp(delta_t decay) to `factor` and the next state to `out`, which may be `state` itself."""
        torch.mul(self.delta_row[t], self.decay, out=factor).exp_()
        torch.mul(state, factor, out=out).addcmul_(self.b_column[t], self.drive_row[t])


def _blocks(
    delta: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Iterator[tuple[slice, _Block]]:
    """Split the sequences into blocks; the first is the largest."""
    num_sequences, num_steps, _ = delta.shape
    is_cpu = delta.device.type == "cpu"
    per_step = (_CPU_STEP * torch.get_num_threads() if is_cpu else _DEVICE_STEP) // decay.numel()
    in_history = (_CPU_HISTORY if is_cpu else _DEVICE_HISTORY) // (decay.numel() * num_steps)
    num_rows = max(1, min(per_step, in_history))
    for start in range(0, num_sequences, num_rows):
        rows = slice(start, min(start + num_rows, num_sequences))
        yield rows, _Block(delta[rows], x[rows], decay, b[rows], c[rows], state[rows])


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        y, last = torch.empty_like(inputs[0]), torch.empty_like(inputs[-1])
        for rows, block in _blocks(*inputs):
            state, factor = block.state, torch.empty_like(block.state)
            outputs = torch.empty_like(block.x)
            for t, output in enumerate(outputs[:, :, None].unbind(0)):
                block.advance(t, state, factor, out=last[rows])
                state = last[rows]
                torch.bmm(block.c_row[t], state, out=output)
            y[rows] = outputs.transpose(0, 1)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        inputs: tuple[Tensor, ...] = ctx.saved_tensors
        grads = tuple(torch.empty_like(part) for part in inputs)
        ddecay = grads[2].zero_()
        scratch = None
        with torch.autocast(dy.device.type, enabled=False):
            for rows, block in _blocks(*inputs):
                if scratch is None:
                    scratch = dy.new_empty(2, dy.shape[1], *block.state.shape)
                block_dy = dy[rows].transpose(0, 1).contiguous()
                parts = _block_gradient(block, block_dy, dlast[rows].clone(), scratch[:, :, : len(block.state)])
                for whole, part in zip((*grads[:2], *grads[3:5]), parts[:4], strict=True):
                    whole[rows] = part.transpose(0, 1)
                ddecay += parts[4]
                grads[5][rows] = parts[5]
        return grads


def _block_gradient(
    block: _Block, dy: Float[Tensor, "T R E"], dstate: Float[Tensor, "R n E"], scratch: Float[Tensor, "2 T R n E"]
) -> tuple[Tensor, ...]:
    """Recompute the states of a block, then compute the gradients backwards in time.

    Let G_t be the gradient of h_t, a_t = exp(delta_t A) and P_t = G_t a_t h_{t-1}. Backwards in t:
    G_t = dy_t c_t + a_{t+1} G_{t+1}; dc_t = sum_e dy_t h_t; db_t = sum_e delta_t x_t G_t; dx_t = delta_t (b_t G_t);
    dA = sum_t P_t delta_t; ddelta_t = sum_n P_t A + x_t (b_t G_t).

    Args:
        block: The arguments.
        dy: Gradient of the outputs.
        dstate: Gradient of the last state; overwritten.
        scratch: Buffer for the states and the factors a of all steps.

    Returns:
        Gradients of delta, x, b, c (steps first), decay and the first state.
    """
    num_steps = len(dy)
    states, factors = [block.state, *scratch[0].unbind(0)], scratch[1].unbind(0)
    for t in range(num_steps):
        block.advance(t, states[t], factors[t], out=states[t + 1])
    ddelta, carried, ddecay = torch.empty_like(dy), torch.empty_like(dy), torch.zeros_like(dstate)
    db, dc = torch.empty_like(block.b), torch.empty_like(block.c)
    dy_row, db_row, dc_row, carried_row = (part[:, :, None].unbind(0) for part in (dy, db, dc, carried))
    for t in reversed(range(num_steps)):
        dstate.addcmul_(block.c_column[t], dy_row[t])
        # A row times a transposed matrix: three times as fast as the matrix times a column.
        torch.bmm(dy_row[t], states[t + 1].transpose(1, 2), out=dc_row[t])
        torch.bmm(block.drive_row[t], dstate.transpose(1, 2), out=db_row[t])
        torch.bmm(block.b_row[t], dstate, out=carried_row[t])
        dstate.mul_(factors[t])
        # The state after this step is no longer needed, so its memory is reused for the product.
        product = torch.mul(states[t], dstate, out=states[t + 1])
        ddecay.addcmul_(product, block.delta_row[t])
        torch.sum(product.mul_(block.decay), 1, out=ddelta[t])
    ddelta.addcmul_(carried, block.x)
    return ddelta, carried.mul_(block.delta), db, dc, ddecay.sum(0), dstate
