"""The decoder of masked prediction: from a core's outputs at visible frames to the tokens of hidden frames.

Axes: B clips, k visible and h hidden frames, T = k + h, L tokens of a frame, D width of the tokens, C of the decoder.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vidflow.models.cores.blocks import SpatialBlock
from vidflow.models.tasks.masking import Places

# LV-MAE has 8 behind 32 blocks of the encoder; cores here have one to four layers.
_NUM_BLOCKS = 2
# The slowest sine has a wave of this many frames times 2 pi. Source: Vaswani et al. 2017 (arXiv 1706.03762), 3.5.
_LONGEST = 10_000.0


class FrameDecoder(nn.Module):
    """Narrow the core's outputs, put a learned token at each hidden frame, add the time, and attend over time.

    Each token of the frame looks along its own place in the T frames. What moves between places is left to the core.

    Source: LV-MAE (Naiman et al., ICCV 2025), decoder: linear, mask tokens, sin-cos positions, pre-norm blocks, norm,
    linear. Differs: fewer blocks, and a sequence per token of the frame, where LV-MAE has one vector per place.
    """

    def __init__(self, embed_dim: int, *, width: int, num_heads: int) -> None:
        """Build the decoder.

        Raises:
            ValueError: The width is odd, so that sines and cosines do not fill it.
        """
        super().__init__()
        if width % 2:
            raise ValueError(f"readout_dim is {width}; the decoder of masked_tokens needs an even width")
        self.enter = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(
            SpatialBlock(width, num_heads, dropout=0.0, drop_path=0.0) for _ in range(_NUM_BLOCKS)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, embed_dim)

    def forward(self, features: Float[Tensor, "B k L D"], places: Places) -> Float[Tensor, "B h L D"]:
        """Predict the tokens of the hidden frames."""
        seen = self.enter(features)
        seen = seen + encode_times(places.visible, seen.shape[-1])[:, :, None].to(seen.dtype)
        asked = self.mask_token.to(seen.dtype) + encode_times(places.hidden, seen.shape[-1]).to(seen.dtype)
        asked = asked[:, :, None].expand(-1, -1, seen.shape[2], -1)
        tracks = torch.cat([seen, asked], dim=1).transpose(1, 2)  # the block attends along the last axis but one
        for block in self.blocks:
            tracks = block(tracks)
        predicted: Tensor = self.leave(self.norm(tracks[:, :, features.shape[1] :]))
        return predicted.transpose(1, 2)


def encode_times(frames: Int64[Tensor, "B k"], width: int) -> Float[Tensor, "B k C"]:
    """Return fixed sines, then cosines, of the numbers of frames."""
    exponents = torch.arange(width // 2, device=frames.device) / (width // 2)
    angles = frames[..., None] * torch.exp(-math.log(_LONGEST) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


__all__ = ["FrameDecoder", "encode_times"]
