"""Run a vision transformer that reduces tokens between blocks: `(attention -> reduce -> MLP)` block by block.

Axes: B images, S tokens of a sequence (P prefix tokens, then N patch tokens), D embedding width, h heads, d width of a
head, K tapped depths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidflow.models.encoder.attention import attend
from vidflow.models.encoder.clip_blocks import heads_for, shift_heads
from vidflow.models.encoder.clip_parts import ClipParts
from vidflow.models.encoder.vit import (
    TimmVit,
    add_attention,
    add_mlp,
    embed_patches,
    project_heads,
    rope_of_block,
    rotate_heads,
    run_block,
)
from vidflow.models.reduction.assignment import Assignment, follow, keep_tokens
from vidflow.models.reduction.in_block import BlockReducer, BlockView
from vidflow.models.reduction.positions import GridAngles, grid_positions

# Logit bias of padding: it makes the attention weight exactly zero, and fp16 can represent it times sqrt(d).
_PADDING_BIAS = -1000.0
_NO_PARTS = ClipParts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A sequence of tokens, and the patches that they stand for.

    Attributes:
        tokens: Prefix, then patch tokens.
        sizes: Number of patches each patch token stands for, 0 on padding.
        assignment: Token of each patch of the frame, -1 if it was dropped.
        positions: Row and column of each patch token; None if no rotary embedding needs them.
        counts: Number of patch tokens in use per image; None if all are in use.
        is_reduced: Whether tokens have been merged or dropped.
        is_merged: Whether tokens have been merged.
    """

    tokens: Float[Tensor, "B S D"]
    sizes: Float[Tensor, "B N"]
    assignment: Int[Tensor, "B patches"]
    positions: Float[Tensor, "B N 2"] | None
    counts: Int[Tensor, " B"] | None = None
    is_reduced: bool = False
    is_merged: bool = False

    def valid(self) -> Bool[Tensor, "B N"] | None:
        """Mark the patch tokens in use; None means all."""
        if self.counts is None:
            return None
        return torch.arange(self.sizes.shape[1], device=self.sizes.device) < self.counts.unsqueeze(1)


def walk_reduced(
    vit: TimmVit,
    images: Float[Tensor, "B 3 H W"],
    *,
    depths: Sequence[int],
    normalize: bool,
    reducer: BlockReducer | None = None,
    seeds: Int[Tensor, " B"] | None = None,
    kept: Bool[Tensor, "B patches"] | None = None,
    parts: ClipParts | None = None,
    num_frames: int = 1,
) -> list[Tokens]:
    """Run the blocks up to the last tapped one, reducing tokens, and return the sequence after each tapped block.

    Args:
        vit: A timm model in evaluation mode whose blocks passed `check_blocks`.
        images: Normalised images of the size the model was built for.
        depths: Indices of the tapped blocks, from 0, ascending.
        normalize: Whether to apply the model's final norm to each.
        reducer: The reducer that acts between attention and MLP.
        seeds: Seed of each image, for reducers that draw random numbers.
        kept: Patches that enter the first block; None is all.
        parts: What joins the frames of a clip, if anything does; no InTI layers.
        num_frames: Frames of a clip.
    """
    parts = _NO_PARTS if parts is None else parts
    embedded, rope = embed_patches(vit, images, added=parts.added(0, images.shape[0] // num_frames))
    walk = _Walk(vit=vit, rope=rope, reducer=reducer, seeds=seeds, parts=parts, num_frames=num_frames)
    state = walk.whole_grid(embedded)
    if kept is not None:
        state = walk.apply(state, keep_tokens(kept))
    taps = []
    for index in range(depths[-1] + 1):
        state = walk.step(state, index)
        if index in depths:
            taps.append(replace(state, tokens=vit.norm(state.tokens)) if normalize else state)
    return taps


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """What stays the same from block to block."""

    vit: TimmVit
    rope: Float[Tensor, "..."] | None
    reducer: BlockReducer | None
    seeds: Int[Tensor, " B"] | None
    parts: ClipParts
    num_frames: int

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.vit.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def num_prefix(self) -> int:
        return int(self.vit.num_prefix_tokens)

    def whole_grid(self, tokens: Float[Tensor, "B S D"]) -> Tokens:
        batch, num_patches = tokens.shape[0], tokens.shape[1] - self.num_prefix
        return Tokens(
            tokens=tokens,
            sizes=torch.ones(batch, num_patches, device=tokens.device),
            assignment=torch.arange(num_patches, device=tokens.device).expand(batch, -1),
            positions=None if self.rope is None else grid_positions(self.grid, tokens.device).expand(batch, -1, -1),
        )

    def step(self, state: Tokens, index: int) -> Tokens:
        """Run one block: timm's own if no tokens are or get reduced, else our own steps."""
        if index and (added := self.parts.added(index, state.tokens.shape[0] // self.num_frames)) is not None:
            state = replace(state, tokens=state.tokens + added)
        num_patches = state.assignment.shape[1]
        reducer = self.reducer
        offsets = self.parts.offsets
        acts = reducer is not None and reducer.acts_at(index, depth=len(self.vit.blocks), num_patches=num_patches)
        if not acts and not state.is_reduced and not offsets.act_at(index):
            return replace(state, tokens=run_block(self.vit, index, state.tokens, self.rope))
        block: Any = self.vit.blocks[index]
        normed = block.norm1(state.tokens)
        queries, plain_keys, values = project_heads(block.attn, normed)
        rope = self.rope_at(state, index)
        queries = rotate_heads(block.attn, queries, rope, num_prefix=self.num_prefix)
        keys = rotate_heads(block.attn, plain_keys, rope, num_prefix=self.num_prefix)
        heads = attend(queries, *self.read_frames(queries, keys, values, self.bias(state), index))
        state = replace(state, tokens=add_attention(block, state.tokens, normed, heads))
        if reducer is not None and acts:
            view = BlockView(
                index=index,
                depth=len(self.vit.blocks),
                grid=self.grid,
                num_prefix=self.num_prefix,
                tokens=state.tokens[:, self.num_prefix :],
                queries=queries,
                keys=keys,
                plain_keys=plain_keys,
                valid=state.valid(),
                seeds=self.seeds,
            )
            step = reducer.assign(view)
            state = state if step is None else self.apply(state, step)
        return replace(state, tokens=add_mlp(block, state.tokens))

    def read_frames(
        self,
        queries: Float[Tensor, "B h S d"],
        keys: Float[Tensor, "B g S d"],
        values: Float[Tensor, "B g S d"],
        bias: Float[Tensor, "B S"] | None,
        index: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, values and biases of the frames that the heads read: sizes and padding travel with the keys."""
        offsets = self.parts.offsets
        if not offsets.act_at(index):
            return keys, values, bias
        shift = partial(shift_heads, offsets=offsets, num_frames=self.num_frames)
        by_head = None if bias is None else shift(bias.unsqueeze(1).expand(-1, queries.shape[1], -1))
        return shift(heads_for(queries, keys)), shift(heads_for(queries, values)), by_head

    def apply(self, state: Tokens, step: Assignment) -> Tokens:
        """Reduce the patch tokens; prefix tokens stay unchanged in front."""
        prefix, patches = state.tokens[:, : self.num_prefix], state.tokens[:, self.num_prefix :]
        merged, sizes = step.merge(patches, state.sizes)
        return Tokens(
            tokens=torch.cat([prefix, merged], dim=1),
            sizes=sizes,
            assignment=follow(state.assignment, step.row_of),
            positions=self.moved(state, step),
            counts=step.counts,
            is_reduced=True,
            is_merged=state.is_merged or step.combine == "mean",
        )

    def moved(self, state: Tokens, step: Assignment) -> Float[Tensor, "B N 2"] | None:
        """Return the positions of the tokens after a reduction."""
        if state.positions is None:
            return None
        mean_positions = self.reducer is not None and self.reducer.positions == "mean"
        return step.merge(state.positions, state.sizes)[0] if mean_positions else step.select(state.positions)

    def rope_at(self, state: Tokens, index: int) -> Float[Tensor, "..."] | None:
        """Return the rotary embedding at the tokens' current positions."""
        if self.rope is None or state.positions is None:
            return None
        rope = rope_of_block(self.vit, self.rope, index)
        return GridAngles.of_embedding(rope, self.grid).embed(state.positions) if state.is_reduced else rope

    def bias(self, state: Tokens) -> Float[Tensor, "B S"] | None:
        """Return the bias of each key in the attention logits: the log of its size, and a large negative on padding."""
        proportional = state.is_merged and self.reducer is not None and self.reducer.proportional_attention is not False
        valid = state.valid()
        if not proportional and valid is None:
            return None
        # No clamp at one, because vid-TLDR's sizes are fractions.
        bias = state.sizes.clamp(min=torch.finfo(torch.float32).tiny).log() if proportional else state.sizes * 0
        if valid is not None:
            bias = torch.where(valid, bias, _PADDING_BIAS)
        return F.pad(bias, (self.num_prefix, 0))


__all__ = ["Tokens", "walk_reduced"]
