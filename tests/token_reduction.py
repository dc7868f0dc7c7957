"""Reduction of cached tokens in one call, and its undoing, for tests that look at whole clips."""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidflow.models.reduction.assignment import frame_counts
from vidflow.models.reduction.reducer import PostReducer

Fill = Literal["zero", "carry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedClips:
    """Cached tokens after reduction.

    Attributes:
        tokens: Rows frame by frame, padded with zeros.
        sizes: Number of patches each row stands for, 0 on padding.
        assignment: Row of each patch within its clip, -1 if it was dropped.
        counts: Number of rows of each frame; a row belongs to the frame of its owner.
    """

    tokens: Float[Tensor, "B M D"]
    sizes: Float[Tensor, "B M"]
    assignment: Int[Tensor, "B N"]
    counts: Int[Tensor, "B T"]


def reduce_clips(
    reducer: PostReducer, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None
) -> ReducedClips:
    """Reduce cached tokens.

    Args:
        reducer: A reducer of place `post`.
        tokens: Tokens of whole clips on their grid.
        seeds: Seed of each clip, from its key (`seeds.seed_of_key`); required by random reducers.
    """
    step = reducer.assign(tokens, seeds=seeds)
    values = tokens.flatten(1, 3)
    merged, sizes = step.merge(values, torch.ones(values.shape[:2], device=values.device))
    return ReducedClips(tokens=merged, sizes=sizes, assignment=step.row_of, counts=frame_counts(step, tokens.shape[1]))


def unmerge(
    rows: Float[Tensor, "B M D"], assignment: Int[Tensor, "B N"], *, fill: Fill = "zero", num_frames: int = 1
) -> Float[Tensor, "B N D"]:
    """Give every token a copy of its row.

    Args:
        rows: Reduced tokens.
        assignment: Row of each token, -1 if it was dropped.
        fill: What dropped tokens get: `zero`, or with `carry` the token of the same place in the latest earlier frame
            that kept one (zero if there is none).
        num_frames: Number of frames T; the N tokens are in order of frames. Only `carry` uses it.
    """
    match fill:
        case "zero":
            filled = assignment
        case "carry":
            filled = _carry(assignment.view(len(assignment), num_frames, -1)).flatten(1)
        case _:
            assert_never(fill)
    copies = rows.gather(1, filled.clamp(min=0).unsqueeze(-1).expand(-1, -1, rows.shape[2]))
    return copies * (filled >= 0).unsqueeze(-1)


def _carry(assignment: Int[Tensor, "B T P"]) -> Int[Tensor, "B T P"]:
    """Replace -1 by the latest earlier entry at the same place that is not -1."""
    frames = torch.arange(assignment.shape[1], device=assignment.device).view(1, -1, 1)
    latest = torch.where(assignment >= 0, frames, -1).cummax(dim=1).values
    return torch.where(latest >= 0, assignment.gather(1, latest.clamp(min=0)), -1)
