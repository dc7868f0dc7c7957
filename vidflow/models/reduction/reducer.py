"""The interface of token reducers: where one acts, what it costs, what it must fit, whether counts are even.

Axes: B clips, T frames of a clip, Y and X pixels, H and W the grid, N patches of a frame, F frames of a sample, D
width.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vidflow.models.reduction.assignment import Assignment
from vidflow.models.reduction.macs import VitShape, count_macs


class ReducerFacts(ABC):
    """The facts about a reducer; subclasses override the defaults below."""

    __slots__ = ()

    @property
    def is_random(self) -> bool:
        """Whether the reducer draws random numbers, and so needs a seed for each sample."""
        return False

    @property
    def is_even(self) -> bool:
        """Whether the settings alone guarantee the same number of tokens in all frames."""
        return True

    @property
    def splits_blocks(self) -> bool:
        """Whether the encoder's blocks run step by step, which only plain blocks allow (`vit.check_blocks`)."""
        return False

    def check(self, shape: VitShape, *, num_frames: int) -> None:  # noqa: B027
        """Check the settings against an encoder and clips of `num_frames` frames.

        Raises:
            VidflowError: They do not fit.
        """

    @abstractmethod
    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float | None:
        """Return the mean multiply-accumulates per frame of the encoder with this reducer, the reducer's own included.

        Norms, softmax, sorting and copying are not counted.

        Args:
            shape: The encoder with all its blocks.
            num_blocks: Number of blocks that run, from the first.
            counts: Tokens kept in each frame of a sample; used by reducers whose counts depend on the content.

        Returns:
            The mean, or None if it does not follow from `counts`.
        """


class InputReducer(ReducerFacts):
    """Chooses patches before the encoder, from pixels."""

    __slots__ = ()
    place: ClassVar[Literal["input"]] = "input"

    @property
    def splits_blocks(self) -> bool:
        """Always: frames lack the tokens of some patches."""
        return True

    @abstractmethod
    def kept(self, frames: UInt8[Tensor, "B T Y X 3"], *, patch_size: int) -> Bool[Tensor, "B T N"]:
        """Mark the patches that go through the encoder."""

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:
        """Return the mean over the frames; a frame without kept patches is not encoded and costs nothing."""
        values, frequencies = np.unique(counts, return_counts=True)
        macs = [count_macs(shape, [int(value)] * (num_blocks + 1)) if value else 0 for value in values]
        return sum(each * int(times) for each, times in zip(macs, frequencies, strict=True)) / len(counts)


class PostReducer(ReducerFacts):
    """Reduces cached tokens, clip by clip."""

    __slots__ = ()
    place: ClassVar[Literal["post"]] = "post"

    @abstractmethod
    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:
        """Return the assignment of the tokens of each clip; rows are in the order of their owners."""

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:  # noqa: ARG002
        """Return the cost of the encoder without reduction."""
        return count_macs(shape, [shape.num_patches] * (num_blocks + 1))


__all__ = ["InputReducer", "PostReducer", "ReducerFacts"]
