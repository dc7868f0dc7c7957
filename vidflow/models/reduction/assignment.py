"""The result of a reduction: one integer per token that says which row of the output it goes to.

Every method of this package returns an `Assignment`, whether it merges, drops or selects tokens. Merging, unmerging
and chaining are implemented once, here.

Axes: B samples, N tokens before, M rows after, D width, T frames.
"""

from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Combine = Literal["mean", "owner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One reduction step of a batch.

    Attributes:
        row_of: Row of each token, -1 if it is dropped.
        owners: For each row the token that owns it (kept, destination or centre); N on padding rows.
        counts: Rows in use per sample; the rest is padding. None if all rows are in use.
        weights: Factor of each token's size in its row's mean and size; None is 1.
        combine: `mean` averages a row's tokens by size and weight; `owner` takes the owner's value unchanged.
        has_drops: Whether entries of `row_of` may be -1.
    """

    row_of: Int[Tensor, "B N"]
    owners: Int[Tensor, "B M"]
    counts: Int[Tensor, " B"] | None = None
    weights: Float[Tensor, "B N"] | None = None
    combine: Combine = "mean"
    has_drops: bool = False

    @property
    def num_tokens(self) -> int:
        """Number of tokens before the step."""
        return self.row_of.shape[1]

    @property
    def num_rows(self) -> int:
        """Number of rows after the step, padding included."""
        return self.owners.shape[1]

    def sum(self, values: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """Sum the values of each row's tokens, in float32."""
        # Dropped tokens go to an extra row, which is removed again. One flat index_add is several times faster than
        # scatter_add with an index per channel.
        batch, _, width = values.shape
        rows = self.num_rows + int(self.has_drops)
        index = torch.where(self.row_of < 0, self.num_rows, self.row_of) if self.has_drops else self.row_of
        index = index + torch.arange(batch, device=index.device).unsqueeze(1) * rows
        total: Tensor = torch.zeros(batch * rows, width, device=values.device)
        total.index_add_(0, index.flatten(), values.float().flatten(0, 1))
        return total.view(batch, rows, width)[:, : self.num_rows]

    def merge(
        self, values: Float[Tensor, "B N D"], sizes: Float[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B M"]]:
        """Return each row's value and size; padding is zero in both.

        Source: size-weighted mean of ToMe (Bolya et al., ICLR 2023), section 3, with the weights of vid-TLDR.
        """
        weights = sizes if self.weights is None else sizes * self.weights
        merged_sizes = self.sum(weights.unsqueeze(-1)).squeeze(-1)
        match self.combine:
            case "mean":
                total = self.sum(values.float() * weights.unsqueeze(-1))
                # A row without weight is padding: its sum is zero, so its mean becomes zero.
                merged = (total / merged_sizes.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)).to(
                    values.dtype
                )
            case "owner":
                merged = self.select(values)
            case _:
                assert_never(self.combine)
        return merged, merged_sizes

    def select(self, values: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """Return the values of the owners; padding is zero."""
        index = self.owners if self.counts is None else self.owners.clamp(max=self.num_tokens - 1)
        selected = values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[2]))
        return selected if self.counts is None else selected * self.valid().unsqueeze(-1)

    def valid(self) -> Bool[Tensor, "B M"]:
        """Mark the rows in use."""
        if self.counts is None:
            return torch.ones_like(self.owners, dtype=torch.bool)
        return torch.arange(self.num_rows, device=self.owners.device) < self.counts.unsqueeze(1)

    def compose(self, then: "Assignment") -> "Assignment":
        """Return one step that equals this step followed by `then`.

        Raises:
            ValueError: The steps do not fit together, or have different `combine`.
        """
        if then.num_tokens != self.num_rows or then.combine != self.combine:
            raise ValueError(
                f"a step to {self.num_rows} rows by {self.combine!r} cannot be followed by one of {then.num_tokens} "
                f"tokens by {then.combine!r}"
            )
        weights = self.weights
        if then.weights is not None:
            later = then.weights.gather(1, self.row_of.clamp(min=0))
            weights = later if weights is None else weights * later
        owners = self.owners.gather(1, then.owners.clamp(max=self.num_rows - 1))
        return Assignment(
            row_of=follow(self.row_of, then.row_of),
            owners=owners if then.counts is None else torch.where(then.valid(), owners, self.num_tokens),
            counts=then.counts,
            weights=weights,
            combine=self.combine,
            has_drops=self.has_drops or then.has_drops,
        )

    def in_owner_order(self) -> "Assignment":
        """Return the same step with its rows sorted by owner: frame by frame, in raster order."""
        owners, order = self.owners.sort(dim=1, stable=True)
        ranks = torch.empty_like(order).scatter_(
            1, order, torch.arange(self.num_rows, device=order.device).expand_as(order)
        )
        return replace(self, row_of=follow(self.row_of, ranks), owners=owners)


def follow(first: Int[Tensor, "B N"], then: Int[Tensor, "B M"]) -> Int[Tensor, "B N"]:
    """Chain two assignments; dropped tokens stay dropped."""
    return torch.where(first >= 0, then.gather(1, first.clamp(min=0)), -1)


def keep_all(batch: int, num_tokens: int, device: torch.device) -> Assignment:
    """Return the identity step, which keeps every token."""
    index = torch.arange(num_tokens, device=device).expand(batch, -1)
    return Assignment(row_of=index, owners=index)


def keep_tokens(kept: Bool[Tensor, "B N"], num_rows: int | None = None) -> Assignment:
    """Return the step that keeps the marked tokens in their order and drops the rest.

    Args:
        kept: Tokens to keep.
        num_rows: Number of kept tokens in every sample, if known; None counts them, which synchronises with the device.
    """
    ranks = kept.cumsum(1) - 1
    counts = None if num_rows is not None else kept.sum(1)
    if num_rows is None:
        num_rows = int(ranks.max()) + 1
    return Assignment(
        row_of=torch.where(kept, ranks, -1),
        owners=owners_of(ranks, kept, num_rows),
        counts=counts,
        combine="owner",
        has_drops=True,
    )


def group_tokens(
    group: Int[Tensor, "B N"], is_owner: Bool[Tensor, "B N"], *, combine: Combine, num_rows: int | None = None
) -> Assignment:
    """Return the step that puts every token into the row of its owner, rows in the order of owners.

    Args:
        group: For each token the index of its owner; -1 drops it. An owner's index is its own.
        is_owner: Which tokens are owners.
        combine: How a row's value is computed.
        num_rows: Number of owners in every sample, if known; None counts them, which synchronises with the device.
    """
    kept = keep_tokens(is_owner, num_rows)
    return replace(kept, row_of=follow(group, kept.row_of), combine=combine)


def join_frames(step: Assignment, num_frames: int) -> Assignment:
    """Turn a step of frames, B x T samples of N tokens, into a step of clips, B samples of T x N tokens.

    Rows are ordered by frame and, within a frame, by owner.
    """
    step = step.in_owner_order()
    if step.counts is None:
        first_rows = torch.arange(num_frames, device=step.owners.device) * step.num_rows
        counts, num_rows = None, num_frames * step.num_rows
    else:
        per_frame = step.counts.view(-1, num_frames)
        counts = per_frame.sum(1)
        first_rows, num_rows = per_frame.cumsum(1) - per_frame, int(counts.max())
    rows = step.row_of.view(-1, num_frames, step.num_tokens)
    rows = torch.where(rows >= 0, rows + first_rows.view(-1, num_frames, 1), -1).flatten(1)
    is_owner = torch.zeros(step.row_of.shape[0], step.num_tokens + 1, dtype=torch.bool, device=rows.device)
    is_owner = is_owner.scatter_(1, step.owners, True)[:, :-1].reshape(rows.shape)
    return Assignment(
        row_of=rows,
        owners=owners_of(rows, is_owner, num_rows),
        counts=counts,
        weights=None if step.weights is None else step.weights.reshape(rows.shape),
        combine=step.combine,
        has_drops=step.has_drops,
    )


def frame_counts(step: Assignment, num_frames: int) -> Int[Tensor, "B T"]:
    """Count the rows of each frame; a row belongs to the frame of its owner."""
    per_frame = step.num_tokens // num_frames
    counts = torch.zeros(step.owners.shape[0], num_frames + 1, dtype=torch.int64, device=step.owners.device)
    # Owners of padding rows are one past the last token, so they are counted in the column that is removed.
    return counts.scatter_add_(1, step.owners // per_frame, torch.ones_like(step.owners))[:, :num_frames]


def owners_of(rows: Int[Tensor, "B N"], is_owner: Bool[Tensor, "B N"], num_rows: int) -> Int[Tensor, "B M"]:
    """Return the owner of each row: the inverse of `rows` on owners. Rows without an owner get N."""
    batch, num_tokens = rows.shape
    index = torch.arange(num_tokens, device=rows.device).expand(batch, -1)
    owners = torch.full((batch, num_rows + 1), num_tokens, dtype=torch.int64, device=rows.device)
    return owners.scatter_(1, torch.where(is_owner, rows, num_rows), index)[:, :num_rows]


__all__ = [
    "Assignment",
    "Combine",
    "follow",
    "frame_counts",
    "group_tokens",
    "join_frames",
    "keep_all",
    "keep_tokens",
    "owners_of",
]
