"""The causal attention core: each token attends to its own past frames in a window; other blocks attend within frames.

Axes: B clips, T frames, N tokens of a frame, D width, W frames of the window, h heads.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from vidflow.models.cores.blocks import DropUnit, SpatialBlock
from vidflow.models.cores.temporal_core import State, StateShape, TemporalCore

# The slowest rotation is one radian in about this many frames. Windows are tens of frames, not thousands of words.
_ROTARY_BASE = 100.0


def rotate_frames(x: Float[Tensor, "S h L d"], first: int = 0) -> Float[Tensor, "S h L d"]:
    """Rotate pairs of channels by angles that grow with the frame; products then depend on the distance in time.

    Args:
        x: Vectors of L consecutive frames.
        first: Position of the first frame.

    Source: Su et al. 2021, RoFormer (arXiv 2104.09864), section 3.2.2; base 100 instead of 10000.
    """
    half = x.shape[-1] // 2
    frequencies = _ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    frames = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float32)
    angles = frames[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x.chunk(2, dim=-1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


class TemporalAttention(nn.Module):
    """Attention of each token to its own last W frames, this one included, with rotary frame positions."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.num_heads = num_heads
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "B T N D"], past: Float[Tensor, "B N P E"], mask: Bool[Tensor, "B T L"]
    ) -> tuple[Float[Tensor, "B T N D"], Float[Tensor, "B N P E"]]:
        """Attend.

        Args:
            x: Tokens of the next T frames.
            past: Keys and values (E = 2 D) of the P = W - 1 previous frames, not rotated. A product of rotated vectors
                depends only on their distance, so positions can be counted from the oldest frame in `past`.
            mask: Which of the L = P + T frames each new frame may see.

        Returns:
            The residual, and the keys and values of the last P frames.
        """
        num_frames, num_tokens = x.shape[1], x.shape[2]
        query, new = self.qkv(self.norm(x)).transpose(1, 2).split([x.shape[-1], 2 * x.shape[-1]], dim=-1)
        kept = torch.cat([past.to(new.dtype), new], dim=2)
        key, value = kept.chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            rotate_frames(self._split_heads(query), first=past.shape[2]),
            rotate_frames(self._split_heads(key)),
            self._split_heads(value),
            attn_mask=mask[:, None].repeat_interleave(num_tokens, dim=0),
            dropout_p=self.dropout if self.training else 0.0,
        )
        rows = (x.shape[0], num_tokens)
        residual = self.proj(attended.transpose(1, 2).reshape(*rows, num_frames, x.shape[-1])).transpose(1, 2)
        return functional.dropout(residual, self.dropout, self.training), kept[:, :, num_frames:]

    def _split_heads(self, x: Float[Tensor, "B N L D"]) -> Float[Tensor, "S h L d"]:
        num_sequences, width = x.shape[0] * x.shape[1], x.shape[3]
        return x.reshape(num_sequences, x.shape[2], self.num_heads, width // self.num_heads).transpose(1, 2)


class CausalAttentionCore(TemporalCore):
    """Alternate attention within each frame and causal attention along time, with a bounded cache of keys and values.

    Source: divided space-time attention, Bertasius et al. 2021 (arXiv 2102.05095), section 3, made causal. Each layer
    sees the last `window` frames, so a stream of any length keeps a state of fixed size.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        window: int = 16,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        drop_unit: DropUnit = "clip",
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window} frames; it must be at least 1, the frame itself")
        if embed_dim % (2 * num_heads):
            raise ValueError(
                f"embed_dim {embed_dim} does not split into {num_heads} heads of even width, which rotary positions "
                "need; choose another num_heads"
            )
        super().__init__(embed_dim)
        self.window = window
        self.spatial_blocks = nn.ModuleList(
            SpatialBlock(embed_dim, num_heads, dropout=dropout, drop_path=drop_path, drop_unit=drop_unit)
            for _ in range(num_layers)
        )
        self.temporal_blocks = nn.ModuleList(
            TemporalAttention(embed_dim, num_heads, dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(embed_dim)

    def state_shapes(self, num_tokens: int) -> tuple[StateShape, ...]:
        """Remember how many past frames are real, and the keys and values of the last W - 1 frames of each layer."""
        cache: StateShape = ((num_tokens, self.window - 1, 2 * self.embed_dim), None)
        return ((), torch.int64), *(cache for _ in self.temporal_blocks)

    def run(self, tokens: Float[Tensor, "B T N D"], state: State | None) -> tuple[Float[Tensor, "B T N D"], State]:
        """Process the frames in parts of W, so that memory grows with T and not with its square."""
        state = self._start(tokens, state)
        outputs = []
        for part in torch.split(tokens, self.window, dim=1):
            output, state = self._run_part(part, state)
            outputs.append(output)
        return self.output_norm(torch.cat(outputs, 1)), state

    def _run_part(self, x: Float[Tensor, "B T N D"], state: State) -> tuple[Float[Tensor, "B T N D"], State]:
        num_past, *caches = state
        mask = self._visible(num_past, x.shape[1])
        kept = []
        for spatial, temporal, cache in zip(self.spatial_blocks, self.temporal_blocks, caches, strict=True):
            x = spatial(x)
            residual, cache = temporal(x, cache, mask)
            x = x + residual
            kept.append(cache)
        return x, ((num_past + x.shape[1]).clamp(max=self.window - 1), *kept)

    def _visible(self, num_past: Tensor, num_frames: int) -> Bool[Tensor, "B T L"]:
        """Let frame t see the slots t .. t + W - 1, of which the last is itself, except slots before the stream."""
        past = self.window - 1
        slot = torch.arange(past + num_frames, device=num_past.device)
        frame = torch.arange(num_frames, device=num_past.device)[:, None]
        in_window = (slot >= frame) & (slot <= frame + past)
        is_real = slot >= past - num_past[:, None]
        return in_window & is_real[:, None]
