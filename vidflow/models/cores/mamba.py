"""The Mamba cores: a selective state space along time per token; optionally with spatial attention, also with gates.

Axes: B clips, T frames, N tokens of a frame, D width, S = B N sequences, E = 2 D inner channels, n state size per
channel, r rank of the step size.
"""

import logging
import math
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidflow.models.cores.blocks import DropUnit, SpatialBlock
from vidflow.models.cores.selective_scan import selective_scan
from vidflow.models.cores.temporal_core import State, StateShape, TemporalCore
from vidflow.models.precision import at_least_single

Mixing = Literal["none", "spatial", "gated"]
"""What a Mamba core adds to the scan: nothing, attention within frames, or attention and a gate on the scan."""

log = logging.getLogger(__name__)

_EXPAND = 2
_CONV_WIDTH = 4
# Range of the step size at the start of training, and its floor.
_DELTA_RANGE = (1e-3, 1e-1)
_DELTA_FLOOR = 1e-4

MixerState = tuple[Float[Tensor, "S 3 E"], Float[Tensor, "S n E"]]


class MambaMixer(nn.Module):
    """The Mamba-1 mixer over a batch of sequences, with the state passed in and out.

    Source: Gu and Dao 2023, Mamba (arXiv 2312.00752), section 3 and the defaults of mamba-ssm. As in the authors' code,
    `A_log` and `D` have the attribute `_no_weight_decay`.
    """

    def __init__(self, embed_dim: int, state_dim: int) -> None:
        super().__init__()
        inner = _EXPAND * embed_dim
        self.rank, self.state_dim = math.ceil(embed_dim / 16), state_dim
        self.in_proj = nn.Linear(embed_dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, _CONV_WIDTH, groups=inner, padding=_CONV_WIDTH - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state_dim, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_dim + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, embed_dim, bias=False)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._reset_step_size()

    def _reset_step_size(self) -> None:
        """Initialise the step sizes log-uniformly; the bias is their inverse softplus."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(bound) for bound in _DELTA_RANGE)
        delta = (torch.rand(self.dt_proj.out_features) * (high - low) + low).exp().clamp(min=_DELTA_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))

    def forward(
        self, tokens: Float[Tensor, "S T D"], state: MixerState | None
    ) -> tuple[Float[Tensor, "S T D"], MixerState]:
        """Process the sequences; the state is the last three conv inputs and the scan's state."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        window, hidden = state if state is not None else (None, None)
        x, window = self._convolve(x, window)
        low_rank, b, c = self.x_proj(x).split([self.rank, self.state_dim, self.state_dim], dim=-1)
        # The bias is added in single precision: softplus and the scan must not see a rounded step size.
        raw_delta = at_least_single(functional.linear(low_rank, self.dt_proj.weight)) + at_least_single(
            self.dt_proj.bias
        )
        y, hidden = self._scan(functional.softplus(raw_delta), x, b, c, hidden)
        out: Tensor = self.out_proj((y * functional.silu(gate.to(y.dtype))).to(tokens.dtype))
        return out, (window, hidden)

    def _convolve(
        self, x: Float[Tensor, "S T E"], window: Float[Tensor, "S 3 E"] | None
    ) -> tuple[Float[Tensor, "S T E"], Float[Tensor, "S 3 E"]]:
        """Convolve the last four inputs of each channel; inputs before the first frame are zero."""
        if window is None:
            window = x.new_zeros(x.shape[0], _CONV_WIDTH - 1, x.shape[2])
        padded = torch.cat([window.to(x.dtype), x], dim=1)
        out = functional.conv1d(padded.transpose(1, 2), self.conv1d.weight, self.conv1d.bias, groups=self.conv1d.groups)
        return functional.silu(out.transpose(1, 2)), padded[:, -(_CONV_WIDTH - 1) :]

    def _scan(
        self, delta: Tensor, x: Tensor, b: Tensor, c: Tensor, hidden: Float[Tensor, "S n E"] | None
    ) -> tuple[Float[Tensor, "S T E"], Float[Tensor, "S n E"]]:
        """Use the kernel if possible; it starts from a zero state, so a given state needs the plain scan."""
        decay = -at_least_single(self.A_log).exp()
        if hidden is None and x.is_cuda and (kernel := _load_kernel()) is not None:
            return _kernel_scan(kernel, delta, x, decay, b, c, self.D.float())
        if hidden is None:
            hidden = torch.zeros(x.shape[0], self.state_dim, x.shape[2], device=x.device, dtype=delta.dtype)
        y, hidden = selective_scan(delta, x, decay.t().contiguous(), b, c, hidden)
        return y + self.D * x, hidden


@cache
def _load_kernel() -> Any:
    """Return mamba-ssm's selective scan, or None if it is not installed or does not work with this torch."""
    if find_spec("mamba_ssm") is None:
        return None
    try:
        return import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError as error:
        log.warning("mamba-ssm is installed but cannot be loaded (%s); scanning in plain torch, which is slower", error)
        return None


def _kernel_scan(
    kernel: Any, delta: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> tuple[Float[Tensor, "S T E"], Float[Tensor, "S n E"]]:
    """Run mamba-ssm's CUDA kernel, which takes channels before steps and starts from a zero state.

    The returned state is detached: if a clip is trained in parts, no gradient flows from one part to the part before.
    """
    delta, x, b, c = (part.float().transpose(1, 2).contiguous() for part in (delta, x, b, c))
    y, hidden = kernel(x, delta, decay, b, c, skip, return_last_state=True)
    return y.transpose(1, 2), hidden.transpose(1, 2).detach()


class MambaBlock(nn.Module):
    """The pre-norm residual of the mixer along time, without the addition."""

    def __init__(self, embed_dim: int, state_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.mamba = MambaMixer(embed_dim, state_dim)
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "B T N D"], state: State | None
    ) -> tuple[Float[Tensor, "B T N D"], tuple[Tensor, Tensor]]:
        """Process the frame sequence of each token independently."""
        rows = x.shape[0], x.shape[2]
        folded = None if state is None else (state[0].flatten(0, 1), state[1].flatten(0, 1))
        out, (window, hidden) = self.mamba(self.norm(x).transpose(1, 2).flatten(0, 1), folded)
        residual = functional.dropout(out.unflatten(0, rows).transpose(1, 2), self.dropout, self.training)
        return residual, (window.unflatten(0, rows), hidden.unflatten(0, rows))


class MambaCore(TemporalCore):
    """A stack of Mamba blocks along time, with optional attention within frames and optional gates.

    Source: Orlova et al. 2026 (arXiv 2605.19137): M (mixing `none`), MMix (`spatial`) and GMMix (`gated`). The gate
    (1 - u) z + u (z + r) is computed as z + u r. Differs: takes any number of tokens; see also `SpatialBlock`.

    Choices:
        mamba: A stack of Mamba blocks along time; each token sees only its own past.
        mamba_mix: As `mamba`, with attention among the tokens of a frame before each block.
        gated_mamba_mix: As `mamba_mix`, with a gate per token and channel on the output of each Mamba block.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        mixing: Mixing,
        state_dim: int = 16,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        drop_unit: DropUnit = "clip",
    ) -> None:
        super().__init__(embed_dim)
        self.state_dim = state_dim
        self.mamba_blocks = nn.ModuleList(MambaBlock(embed_dim, state_dim, dropout) for _ in range(num_layers))
        num_spatial = 0 if mixing == "none" else num_layers
        self.spatial_blocks = nn.ModuleList(
            SpatialBlock(embed_dim, num_heads, dropout=dropout, drop_path=drop_path, drop_unit=drop_unit)
            for _ in range(num_spatial)
        )
        num_gates = num_layers if mixing == "gated" else 0
        self.gates = nn.ModuleList(nn.Linear(2 * embed_dim, embed_dim) for _ in range(num_gates))
        self.output_norm = nn.LayerNorm(embed_dim)

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember, per layer and token, three conv inputs, and the scan's state in single precision."""
        inner = _EXPAND * self.embed_dim
        window: StateShape = ((num_tokens, _CONV_WIDTH - 1, inner), None)
        hidden: StateShape = ((num_tokens, self.state_dim, inner), torch.float32)
        return tuple(part for _ in self.mamba_blocks for part in (window, hidden))

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B T N D"], State]:
        """Apply the blocks; without a state the scan may use a kernel that starts from zero."""
        x, kept = tokens, []
        for index, block in enumerate(self.mamba_blocks):
            if self.spatial_blocks:
                x = self.spatial_blocks[index](x)
            residual, layer_state = block(x, None if state is None else state[2 * index : 2 * index + 2])
            if self.gates:
                residual = torch.sigmoid(self.gates[index](torch.cat([x, x + residual], dim=-1))) * residual
            x = x + residual
            kept.extend(layer_state)
        return self.output_norm(x), tuple(kept)
