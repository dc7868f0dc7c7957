"""What joins the frames of a clip inside an image encoder: attention heads that read another frame, and an embedding.

Axes: B clips, T frames, S tokens of a frame, D width, h heads, d width of a head. Frames lie in the batch axis, the
frames of one clip after another.

Source: spatial-temporal dual-headed attention of ZeroI2V (Li et al., ECCV 2024, arXiv 2310.01324).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vidflow.config.schema import AdapterPlace
from vidflow.models.encoder.attention import attend, attend_eagerly
from vidflow.models.encoder.vit import (
    Adapt,
    TimmVit,
    add_attention,
    add_mlp,
    project_heads,
    rope_of_block,
    rotate_heads,
)

ReadFrames = Callable[[Tensor], Tensor]
"""Gives each head what that head has in the frame that it reads; called with the keys, then with the values."""


@dataclass(frozen=True, slots=True)
class HeadOffsets:
    """How many frames later each head's keys and values are.

    Attributes:
        by_head: One offset per head; empty is 0 for all.
        first_block: First block in which they act.
    """

    by_head: tuple[int, ...] = ()
    first_block: int = 0

    def act_at(self, index: int) -> bool:
        """Whether a head of this block reads another frame."""
        return index >= self.first_block and any(self.by_head)

    @property
    def is_causal(self) -> bool:
        """Whether no head reads a later frame."""
        return all(offset <= 0 for offset in self.by_head)

    @property
    def look_back(self) -> int:
        """The largest number of frames that a head looks back."""
        return max((-offset for offset in self.by_head), default=0)

    def reader(self, num_frames: int) -> ReadFrames:
        """Return how the heads of whole clips of `num_frames` frames read."""
        return partial(shift_heads, offsets=self, num_frames=num_frames)

    @property
    def temporal_heads(self) -> list[int]:
        """The heads that read another frame."""
        return [head for head, offset in enumerate(self.by_head) if offset]


def shift_heads(
    heads: Float[Tensor, "frames h *rest"], offsets: HeadOffsets, *, num_frames: int
) -> Float[Tensor, "frames h *rest"]:
    """Give each head of a frame what that head has in the frame that it reads.

    Args:
        heads: Keys, values, or biases of keys: of whole clips of `num_frames` frames.
        offsets: The frame that each head reads; a head whose frame is not in the clip reads its own.
        num_frames: Frames of a clip.
    """
    clips = heads.unflatten(0, (-1, num_frames))
    parts: list[Tensor] = []
    for offset, first, last in _runs(offsets.by_head):
        run = clips[:, :, first:last]
        parts.append(run if abs(offset) >= num_frames else _shift(run, offset))
    return torch.cat(parts, dim=2).flatten(0, 1)


def _shift(clips: Float[Tensor, "B T ..."], offset: int) -> Float[Tensor, "B T ..."]:
    if offset > 0:
        return torch.cat([clips[:, offset:], clips[:, -offset:]], dim=1)
    return torch.cat([clips[:, :-offset], clips[:, :offset]], dim=1) if offset else clips


@lru_cache(maxsize=64)
def _runs(by_head: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return runs of neighbouring heads with one offset: the offset, the first head, the head after the last."""
    starts = [head for head, offset in enumerate(by_head) if not head or offset != by_head[head - 1]]
    return [(by_head[start], start, end) for start, end in zip(starts, [*starts[1:], len(by_head)], strict=True)]


def run_spelled_block(
    vit: TimmVit,
    index: int,
    tokens: Float[Tensor, "frames S D"],
    rope: Float[Tensor, "..."] | None,
    *,
    read: ReadFrames | None = None,
    adapters: Mapping[AdapterPlace, Adapt] | None = None,
    eager: bool = False,
) -> Float[Tensor, "frames S D"]:
    """Run one block step by step, with heads that read other frames and with adapters.

    Args:
        vit: A timm model in evaluation mode whose blocks passed `check_blocks`.
        index: The block.
        tokens: The residual stream of whole clips.
        rope: The rotary embedding, as `embed_patches` returns it.
        read: How heads read other frames; None is that each reads its own.
        adapters: Maps of the tokens at some places of the block.
        eager: Whether attention writes out its table instead of using the fused kernel.
    """
    adapters = adapters or {}
    block: Any = vit.blocks[index]
    normed = block.norm1(tokens)
    if (before := adapters.get("attention_in")) is not None:
        normed = before(normed)
    queries, keys, values = project_heads(block.attn, normed)
    if rope is not None:
        rope = rope_of_block(vit, rope, index)
        num_prefix = int(vit.num_prefix_tokens)
        queries = rotate_heads(block.attn, queries, rope, num_prefix=num_prefix)
        keys = rotate_heads(block.attn, keys, rope, num_prefix=num_prefix)
    if eager or read is not None:
        keys, values = heads_for(queries, keys), heads_for(queries, values)
    if read is not None:
        keys, values = read(keys), read(values)
    heads = (attend_eagerly if eager else attend)(queries, keys, values, None)
    tokens = add_attention(block, tokens, normed, heads, after=adapters.get("attention_out"))
    return add_mlp(block, tokens, before=adapters.get("mlp_in"), after=adapters.get("mlp_out"))


def heads_for(queries: Float[Tensor, "B h S d"], heads: Float[Tensor, "B g S d"]) -> Float[Tensor, "B h S d"]:
    """Give each head of queries its own keys or values, where several heads share them."""
    groups = queries.shape[1] // heads.shape[1]
    return heads if groups == 1 else heads.repeat_interleave(groups, dim=1)


__all__ = ["HeadOffsets", "ReadFrames", "heads_for", "run_spelled_block", "shift_heads"]
