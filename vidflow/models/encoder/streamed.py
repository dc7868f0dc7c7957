"""Encode streams frame by frame with heads that read earlier frames; the state has a fixed size.

Axes: B streams, m frames that are remembered, t temporal heads, S tokens of a frame, d width of a head, D width.

Source: the causal form of the spatial-temporal heads of ZeroI2V (Li et al., ECCV 2024, arXiv 2310.01324) is ours.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidflow.models.encoder.clip_blocks import HeadOffsets, run_spelled_block
from vidflow.models.encoder.vit import TimmVit, embed_patches, run_block

StreamState = tuple[Tensor, ...]
"""Frames seen by each stream (B,), then keys and values (B, m, t, S, d) of each block whose heads read other frames."""


def init_stream(vit: TimmVit, offsets: HeadOffsets, *, last: int, batch_size: int) -> StreamState:
    """Return the state of streams before their first frame.

    Args:
        vit: A timm model in evaluation mode.
        offsets: The frame that each head reads; none later than its own.
        last: The last block that runs.
        batch_size: Number of streams.
    """
    weight = vit.patch_embed.proj.weight
    assert isinstance(weight, Tensor)
    rows, columns = vit.patch_embed.grid_size
    num_tokens = int(rows) * int(columns) + int(vit.num_prefix_tokens)
    shape = (batch_size, offsets.look_back, len(offsets.temporal_heads), num_tokens, _head_width(vit))
    num_blocks = sum(offsets.act_at(index) for index in range(last + 1))
    seen = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
    return (seen, *(weight.new_zeros(shape) for _ in range(2 * num_blocks)))


def step_stream(
    vit: TimmVit,
    images: Float[Tensor, "B 3 H W"],
    state: StreamState,
    *,
    depths: Sequence[int],
    normalize: bool,
    offsets: HeadOffsets,
) -> tuple[list[Float[Tensor, "B S D"]], StreamState]:
    """Encode the next frame of each stream; return the sequence after each tapped block, and the new state.

    Args:
        vit: A timm model in evaluation mode.
        images: Normalised images of the size the model was built for.
        state: The state, which stays as it is.
        depths: Indices of the tapped blocks, from 0, ascending.
        normalize: Whether to apply the model's final norm to each.
        offsets: The frame that each head reads; none later than its own.
    """
    seen, remembered, renewed = state[0], iter(state[1:]), list[Tensor]()

    def read(heads: Float[Tensor, "B h S d"]) -> Float[Tensor, "B h S d"]:
        past = next(remembered)
        own = heads[:, offsets.temporal_heads]
        renewed.append(torch.cat([past[:, 1:], own.unsqueeze(1)], dim=1))
        chosen = heads.clone()
        for row, head in enumerate(offsets.temporal_heads):
            back = -offsets.by_head[head]
            has_it = (seen >= back).view(-1, 1, 1)
            chosen[:, head] = torch.where(has_it, past[:, -back, row], own[:, row])
        return chosen

    tokens, rope = embed_patches(vit, images)
    taps = []
    for index in range(depths[-1] + 1):
        acts = offsets.act_at(index)
        tokens = run_spelled_block(vit, index, tokens, rope, read=read) if acts else run_block(vit, index, tokens, rope)
        if index in depths:
            taps.append(vit.norm(tokens) if normalize else tokens)
    return taps, (seen + 1, *renewed)


def reset_streams(state: StreamState, mask: Bool[Tensor, " B"]) -> StreamState:
    """Reset the streams where `mask` is true to the state before the first frame."""
    return (torch.where(mask, 0, state[0]), *state[1:])


def _head_width(vit: TimmVit) -> int:
    attention = vit.blocks[0].attn
    return int(attention.head_dim)  # type: ignore[union-attr, arg-type]


__all__ = ["StreamState", "init_stream", "reset_streams", "step_stream"]
