"""The interface of reducers inside the encoder: what they see of a block, and what they must implement.

Axes: B groups of tokens that are matched (an image, a clip, a frame of a clip), S tokens of a sequence (P prefix
tokens, then N patch tokens), D width, h heads, d width of a head.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidflow.models.reduction.assignment import Assignment
from vidflow.models.reduction.macs import VitShape
from vidflow.models.reduction.reducer import ReducerFacts

PositionPolicy = Literal["mean", "destination"]
"""The position of a merged token in rotary embeddings.

Choices:
    mean: The mean position of its patches.
    destination: The position of the token that the others were merged into.
"""
Metric = Literal["keys", "rotated_keys", "tokens"]
"""What tokens are compared by.

Choices:
    keys: The keys of the block's attention, before any rotary embedding.
    rotated_keys: The keys after rotary embedding, so the distance between positions counts too.
    tokens: The residual stream after attention.
"""
HeadPooling = Literal["mean", "concat"]
"""How the keys of several heads become one vector.

Choices:
    mean: The mean over heads, as published.
    concat: The concatenation of all heads.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """The state of one block between its attention residual and its MLP.

    Attributes:
        index: Index of the block, from 0.
        depth: Number of blocks of the encoder.
        grid: Patches per column and row of a group, before any reduction.
        num_prefix: Number P of prefix tokens; only queries and keys include them.
        tokens: Residual stream of the patch tokens, after attention.
        keys: Keys of the whole sequence as attention used them, rotated if the encoder rotates.
        plain_keys: Keys before rotation.
        valid: Patch tokens in use; None if all are in use.
        seeds: Seed of each assignment to make; None unless the reducer is random.
        queries: Queries, as the keys; None if the encoder does not give them.
        frames_per_plan: Consecutive groups that share one assignment, the frames of a clip; 1 if each has its own.
    """

    index: int
    depth: int
    grid: tuple[int, int]
    num_prefix: int
    tokens: Float[Tensor, "B N D"]
    keys: Float[Tensor, "B h S d"]
    plain_keys: Float[Tensor, "B h S d"]
    valid: Bool[Tensor, "B N"] | None = None
    seeds: Int[Tensor, " plans"] | None = None
    queries: Float[Tensor, "B h S d"] | None = None
    frames_per_plan: int = 1

    @property
    def num_tokens(self) -> int:
        """Number N of remaining patch tokens."""
        return self.tokens.shape[1]

    def metric(self, metric: Metric, pooling: HeadPooling) -> Float[Tensor, "plans N C"]:
        """Return the vectors by which tokens are compared; keys are in float32, the mean or concatenation of heads.

        If frames share an assignment, the unit vectors of all frames are put side by side: the cosine of the result is
        the mean of the frames' cosines.
        """
        vectors = self._vectors(metric, pooling)
        if self.frames_per_plan == 1:
            return vectors
        by_frame: Tensor = F.normalize(vectors.float(), dim=-1).unflatten(0, (-1, self.frames_per_plan))
        return by_frame.transpose(1, 2).flatten(2)

    def _vectors(self, metric: Metric, pooling: HeadPooling) -> Float[Tensor, "B N C"]:
        if metric == "tokens":
            return self.tokens
        keys = (self.plain_keys if metric == "keys" else self.keys)[:, :, self.num_prefix :]
        if pooling == "mean":
            return torch.mean(keys, dim=1, dtype=torch.float32)
        return keys.transpose(1, 2).flatten(2)

    def attention(self) -> Float[Tensor, "B h N S"]:
        """Return the attention of patch tokens to the whole sequence, without size bias; needs h x N x S memory."""
        assert self.queries is not None
        queries = self.queries[:, :, self.num_prefix :].float()
        keys = self.keys.float().repeat_interleave(queries.shape[1] // self.keys.shape[1], dim=1)
        return torch.softmax(queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5, dim=-1)


class BlockReducer(ReducerFacts):
    """A reducer between attention and MLP of chosen blocks."""

    __slots__ = ()
    place: ClassVar[Literal["block"]] = "block"

    @property
    @abstractmethod
    def proportional_attention(self) -> bool | None:
        """Whether attention weights keys by the number of patches they stand for; None is as published."""

    @property
    @abstractmethod
    def positions(self) -> PositionPolicy:
        """The position of a merged token in rotary embeddings."""

    @property
    def splits_blocks(self) -> bool:
        """Always: the reducer acts in the middle of blocks."""
        return True

    def tokens_left(self, shape: VitShape) -> list[int] | None:  # noqa: ARG002
        """Return the number of patch tokens before the first block and after each; None if it depends on the image."""
        return None

    @abstractmethod
    def acts_at(self, index: int, *, depth: int, num_patches: int) -> bool:
        """Say whether the reducer may act in a block; other blocks run unchanged."""

    @abstractmethod
    def assign(self, view: BlockView) -> Assignment | None:
        """Return the assignment of the patch tokens, or None to leave them unchanged."""


__all__ = ["BlockReducer", "BlockView", "HeadPooling", "Metric", "PositionPolicy"]
