"""The gated transformer core: one memory vector per token, updated at each frame through update and reset gates.

Axes: B clips, T frames, N tokens of a frame, D width.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidflow.models.cores.blocks import Mlp
from vidflow.models.cores.temporal_core import State, StateShape, TemporalCore

GatedVariant = Literal["released", "rvm"]
"""`released`: for the torch checkpoints of the frozen-encoder paper. `rvm`: for RVM's own weights."""

# Eps of the norms inside the transformer and, in the released torch code, of the state norm.
_INNER_EPS = 1e-6
# Eps of RVM's own state norm. It matters early in a clip, while the state is small.
_RVM_STATE_EPS = 1e-4


class MemoryBlock(nn.Module):
    """Cross-attention from the frame to the gated memory, an MLP, then attention among the frame's tokens."""

    def __init__(self, embed_dim: int, num_heads: int, gelu: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.ca_norm = nn.LayerNorm(embed_dim, eps=_INNER_EPS)
        self.ca_attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(embed_dim, eps=_INNER_EPS)
        self.mlp = Mlp(embed_dim, gelu=gelu)
        self.sa_norm = nn.LayerNorm(embed_dim, eps=_INNER_EPS)
        self.sa_attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)

    def forward(self, x: Float[Tensor, "B N D"], memory: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Read the memory into the frame's tokens."""
        x = x + self.ca_attn(self.ca_norm(x), memory, memory, need_weights=False)[0]
        x = x + self.mlp(self.mlp_norm(x))
        normed = self.sa_norm(x)
        mixed: Tensor = self.sa_attn(normed, normed, normed, need_weights=False)[0]
        return x + mixed


class MemoryTransformer(nn.Module):
    """A stack of memory blocks that all read the same memory, and a norm."""

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, gelu: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryBlock(embed_dim, num_heads, gelu) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(embed_dim, eps=_INNER_EPS)

    def forward(self, x: Float[Tensor, "B N D"], memory: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Apply the blocks in turn."""
        for layer in self.layers:
            x = layer(x, memory)
        normed: Tensor = self.output_norm(x)
        return normed


class GatedTransformerCore(TemporalCore):
    """Keep one memory vector per token; gates decide per token and channel how much each frame updates it.

    With x the frame, s the memory (zero at first): u = sigmoid(W_ux x + W_us s), g = sigmoid(W_rx x + W_rs s),
    h = transformer(x, g * LN(s)), s <- (1 - u) s + u h; the output is LN(s).

    Source: the recurrent core of RVM (Google DeepMind, representations4d) as used by Orlova et al. 2026
    (arXiv 2605.19137). The variant `rvm` has RVM's own state norm (eps 1e-4, scale only), tanh GELU and no output norm.
    """

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, *, variant: GatedVariant = "released") -> None:
        super().__init__(embed_dim)
        self.num_heads = num_heads
        is_rvm = variant == "rvm"
        self.input_update = nn.Linear(embed_dim, embed_dim, bias=False)
        self.input_reset = nn.Linear(embed_dim, embed_dim, bias=False)
        self.state_update = nn.Linear(embed_dim, embed_dim, bias=False)
        self.state_reset = nn.Linear(embed_dim, embed_dim, bias=False)
        self.state_layer_norm = nn.LayerNorm(embed_dim, eps=_RVM_STATE_EPS if is_rvm else _INNER_EPS, bias=not is_rvm)
        self.transformer = MemoryTransformer(embed_dim, num_layers, num_heads, "tanh" if is_rvm else "none")
        self.output_norm = nn.Identity() if is_rvm else nn.LayerNorm(embed_dim)

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember one vector per token."""
        return (((num_tokens, self.embed_dim), None),)

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B T N D"], State]:
        """Update the memory frame by frame."""
        (memory,) = self._start(tokens, state)
        memories = []
        for frame in tokens.unbind(1):
            memory = self._rewrite(frame, memory)
            memories.append(memory)
        return self.output_norm(torch.stack(memories, 1)), (memory,)

    def _rewrite(self, frame: Float[Tensor, "B N D"], memory: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        update = torch.sigmoid(self.input_update(frame) + self.state_update(memory))
        reset = torch.sigmoid(self.input_reset(frame) + self.state_reset(memory))
        candidate: Tensor = self.transformer(frame, reset * self.state_layer_norm(memory))
        return (1 - update) * memory + update * candidate
