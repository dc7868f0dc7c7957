"""Run a video transformer that reduces tokens in its blocks: `(attention -> reduce -> MLP)` block by block.

Axes: B clips, T frames, Y and X pixels, S tokens of a sequence (P prefix tokens, then n patch tokens), D width, G
groups of N tokens.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.models.encoder.video.attentions import Attended, Attention
from vidflow.models.encoder.video.blocks import Backbone
from vidflow.models.encoder.video.groups import Groups
from vidflow.models.encoder.video.state import ClipTokens, whole_clip
from vidflow.models.reduction.assignment import Assignment, follow
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.in_block import BlockView


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipWalk:
    """What stays the same from block to block.

    Attributes:
        backbone: The model in parts.
        attention: How its blocks attend.
        grid: Output frames, and patches per column and per row of each.
        groups: Which tokens are matched.
        reducer: The reducer between attention and MLP; its `order`, `scope` and `proportional_attention` are given.
    """

    backbone: Backbone
    attention: Attention
    grid: tuple[int, int, int]
    groups: Groups
    reducer: BlockBipartite | None

    def run(
        self, pixels: Float[Tensor, "B T 3 Y X"], *, seeds: Int[Tensor, " B"] | None = None, depth: int | None = None
    ) -> ClipTokens:
        """Run the first `depth` blocks, None is all, and the final norm."""
        state = whole_clip(
            self.backbone.embed(pixels),
            num_prefix=self.backbone.num_prefix,
            grid=self.grid,
            is_rotary=self.backbone.rotate is not None,
        )
        for index in range(len(self.backbone.blocks) if depth is None else depth):
            state = self.step(state, index, seeds)
        return replace(state, tokens=self.backbone.finish(state.tokens))

    def step(self, state: ClipTokens, index: int, seeds: Int[Tensor, " B"] | None) -> ClipTokens:
        """Run one block."""
        block = self.backbone.blocks[index]
        attended = self.attention(block, state)
        state = self.reduce(replace(state, tokens=attended.tokens), attended, index, seeds)
        return replace(state, tokens=state.tokens + block.mlp(block.mlp_norm(state.tokens)))

    def reduce(self, state: ClipTokens, attended: Attended, index: int, seeds: Int[Tensor, " B"] | None) -> ClipTokens:
        """Reduce the patch tokens of each group; prefix tokens stay unchanged in front."""
        depth, num_patches = len(self.backbone.blocks), state.assignment.shape[1] // self.groups.per_clip
        if self.reducer is None or not self.reducer.acts_at(index, depth=depth, num_patches=num_patches):
            return state
        step = self.reducer.assign(self.view(state, attended, index, seeds))
        return state if step is None else self.apply(state, self.for_all_groups(step))

    def view(self, state: ClipTokens, attended: Attended, index: int, seeds: Int[Tensor, " B"] | None) -> BlockView:
        """Return what the reducer sees of the groups."""
        frames, rows, columns = self.grid
        is_clip = self.groups.per_clip == 1
        plain_keys = self.group_keys(attended.plain_keys, state, attended.by_frame)
        is_rotated = attended.keys is not attended.plain_keys
        return BlockView(
            index=index,
            depth=len(self.backbone.blocks),
            grid=(frames * rows, columns) if is_clip else (rows, columns),
            # Only in a whole clip does the published method count prefix tokens when it alternates.
            num_prefix=state.num_prefix if is_clip else 0,
            tokens=self.groups.split(state.patches),
            keys=self.group_keys(attended.keys, state, attended.by_frame) if is_rotated else plain_keys,
            plain_keys=plain_keys,
            seeds=None if seeds is None else self.groups.seeds(seeds),
            frames_per_plan=self.groups.frames_per_plan,
        )

    def group_keys(self, keys: Float[Tensor, "b h m d"], state: ClipTokens, by_frame: bool) -> Float[Tensor, "G h N d"]:
        """Cut keys into those of the groups; the group of a whole clip has those of its prefix tokens in front."""
        if by_frame or self.groups.per_clip == 1:
            return keys
        return self.groups.split(keys[:, :, state.num_prefix :].transpose(1, 2)).transpose(1, 2)

    def for_all_groups(self, step: Assignment) -> Assignment:
        """Repeat the assignments that groups share."""
        times = self.groups.frames_per_plan
        if times == 1:
            return step
        return replace(
            step,
            row_of=step.row_of.repeat_interleave(times, dim=0),
            owners=step.owners.repeat_interleave(times, dim=0),
            weights=None if step.weights is None else step.weights.repeat_interleave(times, dim=0),
        )

    def apply(self, state: ClipTokens, step: Assignment) -> ClipTokens:
        """Reduce the groups by an assignment of each."""
        groups, patch_sizes = self.groups, self.groups.split(state.sizes)
        merged, sizes = step.merge(groups.split(state.patches), patch_sizes)
        # A replaced token has no weight in its row, so nothing is left of it.
        rows = step.row_of if step.weights is None else torch.where(step.weights > 0, step.row_of, -1)
        return replace(
            state,
            tokens=torch.cat([state.prefix, groups.join(merged)], dim=1),
            sizes=groups.join(sizes),
            assignment=follow(state.assignment, groups.join_rows(rows, step.num_rows)),
            positions=self.moved(state, step, patch_sizes),
            is_merged=state.is_merged or step.combine == "mean",
        )

    def moved(self, state: ClipTokens, step: Assignment, sizes: Float[Tensor, "G N"]) -> Float[Tensor, "B n 3"] | None:
        """Return the positions of the tokens after a reduction."""
        if state.positions is None:
            return None
        assert self.reducer is not None
        positions = self.groups.split(state.positions)
        is_mean = self.reducer.positions == "mean"
        return self.groups.join(step.merge(positions, sizes)[0] if is_mean else step.select(positions))


__all__ = ["ClipWalk"]
