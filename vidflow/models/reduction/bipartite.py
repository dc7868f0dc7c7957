"""ToMe and its variants: merge, drop, hybrid and random, inside the encoder's blocks or on cached tokens.

Axes: B samples, N patch tokens, T frames, F frames of a sample, H and W the grid, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment, join_frames, keep_all
from vidflow.models.reduction.budgets import Budget, check_budget, tokens_left
from vidflow.models.reduction.in_block import BlockReducer, BlockView, HeadPooling, Metric, PositionPolicy
from vidflow.models.reduction.macs import VitShape, count_macs, count_tokens
from vidflow.models.reduction.matching import (
    Matching,
    Order,
    best_sources,
    drop_sources,
    match_at_random,
    match_tokens,
    merge_sources,
    replace_destinations,
)
from vidflow.models.reduction.seeds import reseed

Mode = Literal["tome", "drop", "random_merge", "random_drop", "hybrid"]
"""What happens to a source, a token of one half that is matched with a token of the other half.

Choices:
    tome: Merge each of the most similar pairs into its mean (ToMe).
    drop: Drop the source of each of the most similar pairs, which `tome` would merge into its partner.
    random_merge: As `tome`, with random pairs: a control.
    random_drop: As `drop`, with random tokens: a control.
    hybrid: As `tome`, but a token less similar than `threshold` replaces its partner.
"""
Schedule = Literal["constant", "decreasing", "increasing"]
"""How reduction is spread over the encoder's blocks.

Choices:
    constant: The same number of tokens in every block.
    decreasing: Linearly fewer, from twice the average in the first block to none in the last.
    increasing: Linearly more, from none in the first block to twice the average in the last.
"""
GroupScope = Literal["clip", "frame", "tube", "stride"]
"""Which tokens of a video transformer are matched with one another.

Choices:
    clip: The tokens of the whole clip; only where attention joins all frames.
    frame: The tokens of each frame.
    tube: The tokens of each frame, with the same assignment in all frames of a clip: a token stays at one place.
    stride: Every F-th token of the clip of F frames: tokens of all frames, mixed. An artefact of the released
        Motionformer merging, which its published numbers measure; only for that model.
"""
Scope = Literal["frame", "clip"]
"""Which tokens are reduced together.

Choices:
    frame: The tokens of each frame.
    clip: The tokens of the whole clip.
"""


def schedule_merges(num_merged: int | Sequence[int], schedule: Schedule, *, depth: int) -> list[int]:
    """Return the number of tokens merged in each block.

    Args:
        num_merged: ToMe's r: tokens per block on average, or one number per block (the rest are zero).
        schedule: Whether an average r is spread evenly, falls from 2r to 0, or rises from 0 to 2r.
        depth: Number of blocks.

    Source: ToMe (Bolya et al., ICLR 2023), section 4.1 and its released schedule, whose truncation is kept.
    """
    if not isinstance(num_merged, int):
        return [*num_merged, *[0] * (depth - len(num_merged))]
    match schedule:
        case "constant":
            start = num_merged
        case "decreasing":
            start = 2 * num_merged
        case "increasing":
            start = 0
        case _:
            assert_never(schedule)
    change = 2 * (num_merged - start)
    return [int(start + block * change / max(depth - 1, 1)) for block in range(depth)]


def spread_merges(num_patches: int, num_left: int, schedule: Schedule, *, depth: int) -> list[int]:
    """Return the number of tokens merged in each block so that exactly `num_left` are left after the last block.

    No block can merge more than half of its tokens. If a later block cannot merge its share, earlier blocks merge more.
    If all blocks together cannot merge enough, each merges half.

    Args:
        num_patches: Tokens before the first block.
        num_left: Tokens after the last block, 1 to `num_patches`.
        schedule: Whether the number of merged tokens is constant, or falls or rises linearly from block to block.
        depth: Number of blocks.
    """
    shares = {"constant": [1] * depth, "decreasing": [*range(depth - 1, -1, -1)], "increasing": [*range(depth)]}
    weights = shares[schedule] if depth > 1 else [1]
    merges, left = [], num_patches
    for block in range(depth):
        # The schedule's tokens after this block, but at most as many as the later blocks can halve to `num_left`.
        planned = num_patches - round((num_patches - num_left) * sum(weights[: block + 1]) / sum(weights))
        merges.append(min(left - min(planned, num_left << depth - 1 - block), left // 2))
        left -= merges[-1]
    return merges


def assign_matched(
    matching: Matching, *, mode: Mode, num_merged: int, threshold: float = 0.0, order: Order = "index"
) -> Assignment:
    """Return the step of a mode on the `num_merged` best edges."""
    sources = best_sources(matching, num_merged)
    step = merge_sources(matching, sources, num_merged=num_merged, order=order)
    match mode:
        case "tome" | "random_merge":
            return step
        case "drop" | "random_drop":
            return drop_sources(step, matching, sources)
        case "hybrid":
            return replace_destinations(step, matching, sources, threshold=threshold)
        case _:
            assert_never(mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBipartite(BlockReducer):
    """Bipartite matching in the encoder's blocks, between attention and MLP.

    Attributes:
        mode: What happens to a source token: merged, dropped, merged or replacing its partner (hybrid); similar or
            random partners.
        num_merged: ToMe's r: tokens removed per block on average, or one number per block; at most half of a block's.
        keep: Instead of `num_merged`: fraction of patch tokens left after the last block.
        tokens: Instead of both: patch tokens left after the last block.
        schedule: How the removed tokens are spread over the blocks, if `num_merged` is an average or there is a budget.
        metric: What tokens are compared by.
        head_pooling: How the keys of several heads are combined.
        proportional_attention: Whether attention weights a token by its number of patches; no effect if dropped. Null,
            as published: in all encoders but VideoMAE.
        positions: The position of a merged token in rotary embeddings.
        order: Order of the unmerged tokens of the sources' half, which decides the possible pairs in the next block.
            Null, as published: `index` if the encoder has a class token or registers, else `similarity`; `similarity`
            also in TimeSformer and Motionformer, `index` in V-JEPA 2.
        threshold: Similarity below which a source replaces its destination; `hybrid` only.
        seed: Number of the random draw; other seeds give other pairs. `random_merge` and `random_drop` only.
        scope: Which tokens of a video transformer are matched with one another. Null: `clip` where attention joins all
            frames, else `frame`. Image encoders see single frames.

    Source: ToMe (Bolya et al., ICLR 2023); modes of "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025). Class
    token and registers are never matched; neither paper has them together with rotary embeddings.
    """

    mode: Mode = "tome"
    num_merged: int | tuple[int, ...] | None = None
    keep: float | None = None
    tokens: int | None = None
    schedule: Schedule = "constant"
    metric: Metric = "keys"
    head_pooling: HeadPooling = "mean"
    proportional_attention: bool | None = None
    positions: PositionPolicy = "mean"
    order: Order | None = None
    threshold: float = 0.0
    seed: int = 0
    scope: GroupScope | None = None

    def __post_init__(self) -> None:
        if sum(budget is not None for budget in (self.num_merged, self.keep, self.tokens)) != 1:
            raise VidflowError(
                f"reducer {self.mode!r} wants one of num_merged, keep and tokens, "
                f"got {self.num_merged}, {self.keep} and {self.tokens}"
            )
        if self.num_merged is None:
            check_budget(self.mode, keep=self.keep, tokens=self.tokens)
        wanted = (self.num_merged,) if isinstance(self.num_merged, int) else self.num_merged or ()
        if any(number < 0 for number in wanted):
            raise VidflowError(f"reducer {self.mode!r} has num_merged {self.num_merged}; wanted no negative number")

    @property
    def is_random(self) -> bool:
        """Whether partners are random."""
        return self.mode in ("random_merge", "random_drop")

    def merges(self, *, depth: int, num_patches: int) -> list[int]:
        """Return the number of tokens to remove in each block, before the limit of half of its tokens."""
        if self.num_merged is not None:
            return schedule_merges(self.num_merged, self.schedule, depth=depth)
        num_left = tokens_left(self.mode, keep=self.keep, tokens=self.tokens, num_patches=num_patches)
        return spread_merges(num_patches, num_left, self.schedule, depth=depth)

    def check(self, shape: VitShape, *, num_frames: int) -> None:  # noqa: ARG002
        """Check the number of numbers, the budget and the scope.

        Raises:
            VidflowError: A check fails.
        """
        if self.scope not in (None, *shape.scopes):
            raise VidflowError(
                f"reducer {self.mode!r} has scope {self.scope!r}; this encoder offers {', '.join(shape.scopes)}"
            )
        num_merged = self.merges(depth=shape.depth, num_patches=shape.num_patches)
        if len(num_merged) > shape.depth:
            raise VidflowError(
                f"reducer {self.mode!r} has num_merged for {len(num_merged)} blocks; the encoder has {shape.depth}"
            )

    def tokens_left(self, shape: VitShape) -> list[int]:
        """Return the patch tokens before the first block and after each."""
        return count_tokens(shape.num_patches, self.merges(depth=shape.depth, num_patches=shape.num_patches))

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:  # noqa: ARG002
        """Return the cost of the blocks, and of comparing tokens unless partners are random."""
        rows = self.metric == "tokens" or self.head_pooling == "concat"
        channels = 0 if self.is_random else shape.embed_dim // (1 if rows else shape.num_heads)
        return count_macs(shape, self.tokens_left(shape)[: num_blocks + 1], channels=channels)

    def acts_at(self, index: int, *, depth: int, num_patches: int) -> bool:
        """Say whether a block removes tokens."""
        return self.merges(depth=depth, num_patches=num_patches)[index] > 0

    def assign(self, view: BlockView) -> Assignment | None:
        """Match the remaining tokens and remove this block's number of them."""
        wanted = self.merges(depth=view.depth, num_patches=view.grid[0] * view.grid[1])[view.index]
        num_merged = min(wanted, view.num_tokens // 2)
        if num_merged == 0:
            return None
        published: Order = "index" if view.num_prefix else "similarity"
        return assign_matched(
            self.match(view),
            mode=self.mode,
            num_merged=num_merged,
            threshold=self.threshold,
            order=self.order or published,
        )

    def match(self, view: BlockView) -> Matching:
        """Match the tokens of the two halves."""
        first = view.num_prefix % 2
        if not self.is_random:
            return match_tokens(view.metric(self.metric, self.head_pooling), first=first, valid=view.valid)
        assert view.seeds is not None
        return match_at_random(
            reseed(view.seeds, self.seed), num_tokens=view.num_tokens, first=first, stream=view.index
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PostBipartite(Budget):
    """Bipartite matching of cached tokens, repeated until the budget is reached.

    Attributes:
        mode: As in the encoder's blocks.
        scope: Which tokens are matched with one another.
        threshold: Similarity below which a source replaces its destination; `hybrid` only.
        seed: Number of the random draw; other seeds give other pairs. `random_merge` and `random_drop` only.

    Source: ToMe (Bolya et al., ICLR 2023), applied to features; the clip scope is the joint placement of "Video, How Do
    Your Tokens Merge?" (Pollard and Wray, 2025).
    """

    mode: Mode = "tome"
    scope: Scope = "frame"
    threshold: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """The mode."""
        return self.mode

    @property
    def is_even(self) -> bool:
        """Whether each frame is reduced alone."""
        return self.scope == "frame"

    @property
    def is_random(self) -> bool:
        """Whether partners are random."""
        return self.mode in ("random_merge", "random_drop")

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:
        """Return all steps to the budget as one assignment over the clip."""
        batch, num_frames = tokens.shape[:2]
        frames = 1 if self.scope == "clip" else num_frames
        values = tokens.reshape(batch * frames, -1, tokens.shape[-1]).float()
        if seeds is not None:
            seeds = (reseed(seeds, self.seed).unsqueeze(1) + torch.arange(frames, device=seeds.device)).flatten()
        whole = keep_all(values.shape[0], values.shape[1], values.device)
        wanted = self.num_left(whole.num_tokens * frames // num_frames, num_frames // frames)
        sizes = values.new_ones(values.shape[:2])
        stream = 0
        while whole.num_rows > wanted:
            step = self._step(values, whole.num_rows - wanted, seeds, stream)
            whole = step if stream == 0 else whole.compose(step)
            values, sizes = step.merge(values, sizes)
            stream += 1
        return join_frames(whole, frames)

    def _step(
        self, values: Float[Tensor, "B N D"], excess: int, seeds: Int[Tensor, " B"] | None, stream: int
    ) -> Assignment:
        num_tokens = values.shape[1]
        if self.is_random:
            if seeds is None:
                raise ValueError(f"reducer {self.mode!r} draws random numbers: pass the seed of each clip's key")
            matching = match_at_random(seeds, num_tokens=num_tokens, first=0, stream=stream)
        else:
            matching = match_tokens(values, first=0)
        return assign_matched(
            matching, mode=self.mode, num_merged=min(excess, num_tokens // 2), threshold=self.threshold
        )


__all__ = [
    "BlockBipartite",
    "GroupScope",
    "Mode",
    "PostBipartite",
    "Schedule",
    "Scope",
    "assign_matched",
    "schedule_merges",
    "spread_merges",
]
