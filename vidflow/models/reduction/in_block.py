"""What a reducer inside the encoder sees of a block, and what it must offer.

Axes: B images, S tokens of a sequence (P prefix tokens, then N patch tokens), D width, h heads, d width of a head.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidflow.models.reduction.assignment import Assignment
from vidflow.models.reduction.macs import VitShape
from vidflow.models.reduction.reducer import ReducerFacts

PositionPolicy = Literal["mean", "destination"]
"""Where a merged token is for rotary embeddings.

Choices:
    mean: At the mean position of its patches.
    destination: At the position of the token that the others were merged into.
"""
Metric = Literal["keys", "rotated_keys", "tokens"]
"""What tokens are compared by.

Choices:
    keys: The keys of the block's attention, before any rotary embedding.
    rotated_keys: The keys after rotary embedding, so that distance counts too.
    tokens: The residual stream after attention.
"""
HeadPooling = Literal["mean", "concat"]
"""How the keys of several heads become one vector.

Choices:
    mean: Their mean, as published.
    concat: One after the other.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """One block between its attention residual and its MLP.

    Attributes:
        index: Index of the block, from 0.
        depth: Number of blocks of the encoder.
        grid: Patches per column and row of the frame, before any reduction.
        num_prefix: Number P of prefix tokens, which are in `queries` and `keys` only.
        tokens: Residual stream of the patch tokens, after attention.
        queries: Queries of the whole sequence, rotated where the encoder rotates.
        keys: Keys likewise, as attention used them.
        plain_keys: Keys before rotation.
        valid: Patch tokens in use; None where all are.
        seeds: Seed of each image; None unless the reducer asks for seeds.
    """

    index: int
    depth: int
    grid: tuple[int, int]
    num_prefix: int
    tokens: Float[Tensor, "B N D"]
    queries: Float[Tensor, "B h S d"]
    keys: Float[Tensor, "B h S d"]
    plain_keys: Float[Tensor, "B h S d"]
    valid: Bool[Tensor, "B N"] | None = None
    seeds: Int[Tensor, " B"] | None = None

    @property
    def num_tokens(self) -> int:
        """Number N of patch tokens that are left."""
        return self.tokens.shape[1]

    def metric(self, metric: Metric, pooling: HeadPooling) -> Float[Tensor, "B N C"]:
        """Return what tokens are compared by; keys are compared in float32, as the mean or the row of all heads."""
        if metric == "tokens":
            return self.tokens
        keys = (self.plain_keys if metric == "keys" else self.keys)[:, :, self.num_prefix :]
        if pooling == "mean":
            return torch.mean(keys, dim=1, dtype=torch.float32)
        return keys.transpose(1, 2).flatten(2)

    def attention(self) -> Float[Tensor, "B h N S"]:
        """Return the attention of every patch token to the whole sequence, before any size bias; costs N x S memory."""
        queries = self.queries[:, :, self.num_prefix :].float()
        keys = self.keys.float().repeat_interleave(queries.shape[1] // self.keys.shape[1], dim=1)
        return torch.softmax(queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5, dim=-1)


class BlockReducer(ReducerFacts):
    """A reducer between attention and MLP of chosen blocks."""

    __slots__ = ()
    place: ClassVar[Literal["block"]] = "block"

    @property
    @abstractmethod
    def proportional_attention(self) -> bool:
        """Whether keys count by the number of patches they stand for."""

    @property
    @abstractmethod
    def positions(self) -> PositionPolicy:
        """Where a merged token is for rotary embeddings."""

    @property
    def splits_blocks(self) -> bool:
        """Always: it acts in the middle of them."""
        return True

    def tokens_left(self, shape: VitShape) -> list[int] | None:  # noqa: ARG002
        """Return the patch tokens before the first block and after each; None where images decide."""
        return None

    @abstractmethod
    def acts_at(self, index: int, *, depth: int, num_patches: int) -> bool:
        """Say whether the reducer may act in a block; where it does not, the block is called as it is."""

    @abstractmethod
    def assign(self, view: BlockView) -> Assignment | None:
        """Return what to do with the patch tokens, or None to leave them."""


__all__ = ["BlockReducer", "BlockView", "HeadPooling", "Metric", "PositionPolicy"]
