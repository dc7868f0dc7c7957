"""What a token reducer says of itself: where it acts, what it costs, what it must fit, whether counts are even.

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
    """What is asked of every reducer; most answers are the usual ones below."""

    __slots__ = ()

    @property
    def is_random(self) -> bool:
        """Whether it chooses by chance, and so wants a seed for each sample."""
        return False

    @property
    def is_even(self) -> bool:
        """Whether all frames are left with the same number of tokens, as far as the settings alone decide."""
        return True

    @property
    def splits_blocks(self) -> bool:
        """Whether the encoder's blocks run piece by piece, which only plain blocks can (`vit.check_blocks`)."""
        return False

    def check(self, shape: VitShape, *, num_frames: int) -> None:  # noqa: B027
        """Check the settings against an encoder and clips of so many frames.

        Raises:
            VidflowError: They do not fit.
        """

    @abstractmethod
    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float | None:
        """Return the mean multiply-accumulates that the reduced encoder spends on a frame, the reducer's own included.

        Norms, softmax, sorting and moving are not counted.

        Args:
            shape: The encoder with all its blocks.
            num_blocks: Blocks that run, from the first.
            counts: Tokens kept of each frame of a sample; wanted by reducers that decide by content.

        Returns:
            The mean, or None where `counts` do not tell.
        """


class InputReducer(ReducerFacts):
    """Chooses patches before the encoder, from pixels."""

    __slots__ = ()
    place: ClassVar[Literal["input"]] = "input"

    @property
    def splits_blocks(self) -> bool:
        """Always: frames have tokens in some places only."""
        return True

    @abstractmethod
    def kept(self, frames: UInt8[Tensor, "B T Y X 3"], *, patch_size: int) -> Bool[Tensor, "B T N"]:
        """Mark the patches that go through the encoder."""

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:
        """Return the mean over the frames; one of which nothing is kept is not encoded."""
        values, frequencies = np.unique(counts, return_counts=True)
        macs = [count_macs(shape, [int(value)] * (num_blocks + 1)) if value else 0 for value in values]
        return sum(each * int(times) for each, times in zip(macs, frequencies, strict=True)) / len(counts)


class PostReducer(ReducerFacts):
    """Reduces cached tokens, clip by clip."""

    __slots__ = ()
    place: ClassVar[Literal["post"]] = "post"

    @abstractmethod
    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:
        """Return what to do with the tokens of each clip; rows are in the order of their owners."""

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:  # noqa: ARG002
        """Return the cost of the dense features: the encoder runs as it is."""
        return count_macs(shape, [shape.num_patches] * (num_blocks + 1))


__all__ = ["InputReducer", "PostReducer", "ReducerFacts"]
