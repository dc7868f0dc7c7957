"""Bipartite soft matching: each token of one half finds its most similar partner in the other.

Axes: B samples, N patch tokens, A sources' half, Z the other half, C metric channels.
"""

from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidflow.models.reduction.assignment import Assignment, owners_of
from vidflow.models.reduction.seeds import uniform

Order = Literal["index", "similarity"]
"""The order of the unmerged tokens of the sources' half.

Choices:
    index: The order of their positions.
    similarity: The token most similar to its partner first.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Candidate edges, one per token of the sources' half.

    Attributes:
        scores: Similarity to the partner; -inf for tokens that must stay.
        partners: Index of the partner within the other half.
        num_tokens: Number N of tokens of both halves together.
        first: Index of the first token of the sources' half, 0 or 1; every second token from there is in this half.
        valid: Tokens that are not padding; None if there is no padding.
    """

    scores: Float[Tensor, "B A"]
    partners: Int[Tensor, "B A"]
    num_tokens: int
    first: int
    valid: Bool[Tensor, "B N"] | None = None


def match_tokens(metric: Float[Tensor, "B N C"], *, first: int, valid: Bool[Tensor, "B N"] | None = None) -> Matching:
    """Match alternate tokens by cosine similarity.

    Args:
        metric: Vectors to compare, such as keys or features.
        first: Index of the first token of the sources' half, 0 or 1. The published method counts P prefix tokens when
            it alternates; P % 2 gives the same halves.
        valid: Tokens that are not padding.

    Source: ToMe (Bolya et al., ICLR 2023), section 3 and appendix D. Differs in keeping P prefix tokens out altogether.
    """
    unit = F.normalize(metric.float(), dim=-1)
    similarity = unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)
    return match_pairs(similarity, first=first, valid=valid)


def match_pairs(
    similarity: Float[Tensor, "B A Z"], *, first: int, valid: Bool[Tensor, "B N"] | None = None
) -> Matching:
    """Match each token of the sources' half with the most similar one of the other half, by a table of all pairs."""
    if valid is not None:
        both = valid[:, first::2].unsqueeze(2) & valid[:, 1 - first :: 2].unsqueeze(1)
        similarity = similarity.masked_fill(~both, -torch.inf)
    scores, partners = similarity.max(dim=2)
    num_tokens = sum(similarity.shape[1:])
    return Matching(scores=scores, partners=partners, num_tokens=num_tokens, first=first, valid=valid)


def match_at_random(seeds: Int[Tensor, " B"], *, num_tokens: int, first: int, stream: int) -> Matching:
    """Match alternate tokens at random: the order of sources and each one's partner are uniform.

    Source: "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025), random merge. Independent uniform scores of all
    pairs have the same distribution of matches as a random order of sources with random partners.
    """
    num_first, num_second = (num_tokens - first + 1) // 2, (num_tokens + first) // 2
    draws = uniform(seeds, 2 * num_first, stream=stream)
    partners = (draws[:, num_first:] * num_second).long()
    return Matching(scores=draws[:, :num_first], partners=partners, num_tokens=num_tokens, first=first)


def best_sources(matching: Matching, num_merged: int) -> Bool[Tensor, "B A"]:
    """Mark the `num_merged` best edges of every sample; at most half of the tokens."""
    num_merged = min(num_merged, matching.num_tokens // 2)
    # Stable, so that ties are resolved in the same way on every device.
    order = matching.scores.argsort(dim=1, descending=True, stable=True)
    best = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :num_merged], True)
    return best if matching.valid is None else best & matching.scores.isfinite()


def merge_sources(
    matching: Matching, sources: Bool[Tensor, "B A"], *, num_merged: int | None, order: Order = "index"
) -> Assignment:
    """Return the step that merges the marked sources into their partners.

    Rows are the rest of the sources' half, then the other half in its order.

    Args:
        matching: The edges.
        sources: The sources to merge.
        num_merged: Number of sources to merge in every sample, if known; None counts, which synchronises the device.
        order: Order of the rest of the sources' half.
    """
    first, num_tokens = matching.first, matching.num_tokens
    batch = sources.shape[0]
    valid = matching.valid
    stays = ~sources if valid is None else ~sources & valid[:, first::2]
    num_staying = stays.sum(1, keepdim=True)
    ranks = torch.arange((num_tokens + first) // 2, device=sources.device)
    rows = torch.empty(batch, num_tokens, dtype=torch.int64, device=sources.device)
    rows[:, first::2] = torch.where(sources, num_staying + matching.partners, _ranks(matching, stays, order))
    rows[:, 1 - first :: 2] = num_staying + ranks
    is_owner = torch.ones_like(rows, dtype=torch.bool)
    is_owner[:, first::2] = stays
    counts = None
    if valid is not None or num_merged is None:
        if valid is not None:
            is_owner = is_owner & valid
            rows = torch.where(valid, rows, -1)
        counts = is_owner.sum(1)
        num_rows = int(counts.max())
    else:
        num_rows = num_tokens - min(num_merged, num_tokens // 2)
    return Assignment(
        row_of=rows,
        owners=owners_of(rows, is_owner, num_rows),
        counts=counts,
        has_drops=valid is not None,
    )


def _ranks(matching: Matching, stays: Bool[Tensor, "B A"], order: Order) -> Int[Tensor, "B A"]:
    """Return the rank of every token that stays among all tokens that stay."""
    match order:
        case "index":
            return stays.cumsum(1) - 1
        case "similarity":
            best_first = matching.scores.argsort(dim=1, descending=True, stable=True)
            return torch.empty_like(best_first).scatter_(1, best_first, stays.gather(1, best_first).cumsum(1) - 1)
        case _:
            assert_never(order)


def drop_sources(step: Assignment, matching: Matching, sources: Bool[Tensor, "B A"]) -> Assignment:
    """Return the step that drops the sources which `step` merges.

    Source: "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025), drop.
    """
    row_of = step.row_of.clone()
    row_of[:, matching.first :: 2].masked_fill_(sources, -1)
    return replace(step, row_of=row_of, combine="owner", has_drops=True)


def replace_destinations(
    step: Assignment, matching: Matching, sources: Bool[Tensor, "B A"], *, threshold: float
) -> Assignment:
    """Return `step` changed so that a source with a score below `threshold` replaces its destination's value and size.

    Source: "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025), hybrid: similar pairs are averaged, in others
    the source replaces the destination.
    """
    unlike = (sources & (matching.scores < threshold)).float()
    num_second = (matching.num_tokens + matching.first) // 2
    replaced = torch.zeros(unlike.shape[0], num_second, device=unlike.device).scatter_reduce_(
        1, matching.partners, unlike, reduce="amax"
    )
    weights = torch.ones(step.row_of.shape, device=unlike.device)
    weights[:, 1 - matching.first :: 2] -= replaced
    return replace(step, weights=weights)


__all__ = [
    "Matching",
    "Order",
    "best_sources",
    "drop_sources",
    "match_at_random",
    "match_pairs",
    "match_tokens",
    "merge_sources",
    "replace_destinations",
]
