"""Controls that every adaptive method must beat at equal bytes: pooling, fewer frames, lower resolution, random tokens.

Axes: B clips, T frames, F frames of a sample, N patches of a frame, H and W the grid, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.reduction.assignment import Assignment, group_tokens, keep_tokens
from vidflow.models.reduction.budgets import Budget
from vidflow.models.reduction.macs import VitShape, count_macs
from vidflow.models.reduction.reducer import InputReducer, PostReducer, ReducerFacts
from vidflow.models.reduction.seeds import reseed, uniform
from vidflow.models.reduction.static_patches import last_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class PostPooling(PostReducer):
    """Average fixed windows of frames, rows and columns; windows at the far edges may be smaller: a control.

    Attributes:
        window: Frames, rows and columns of a window.
    """

    window: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        if min(self.window) < 1:
            raise VidflowError(f"reducer 'pool' has window {list(self.window)}; wanted three positive numbers")

    @property
    def is_even(self) -> bool:
        """Whether windows stay within a frame."""
        return self.window[0] == 1

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Average each window."""
        corners = [
            torch.arange(length, device=tokens.device) // side * side
            for length, side in zip(tokens.shape[1:4], self.window, strict=True)
        ]
        _, num_frames, height, width, _ = tokens.shape
        times, rows, columns = corners
        owner = ((times.view(-1, 1, 1) * height + rows.view(-1, 1)) * width + columns).flatten()
        owner = owner.expand(tokens.shape[0], -1)
        itself = torch.arange(num_frames * height * width, device=tokens.device)
        num_rows = 1
        for length, side in zip(tokens.shape[1:4], self.window, strict=True):
            num_rows *= -(-length // side)
        return group_tokens(owner, owner == itself, combine="mean", num_rows=num_rows)


def every_nth_frame(num_frames: int, stride: int, device: torch.device) -> Bool[Tensor, " T"]:
    """Mark every `stride`-th frame, from the first."""
    return torch.arange(num_frames, device=device) % stride == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PostFewerFrames(PostReducer):
    """Keep every n-th frame of cached tokens; the other frames repeat the last kept frame: a control.

    Attributes:
        stride: The n: keep frames 0, n, 2n and so on.
    """

    stride: int = 2

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise VidflowError(f"reducer 'fewer_frames' has stride {self.stride}; wanted 1 or more")

    @property
    def is_even(self) -> bool:
        """Whether no frame is left out."""
        return self.stride == 1

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:  # noqa: ARG002
        """Keep whole frames."""
        batch, num_frames, height, width, _ = tokens.shape
        kept = every_nth_frame(num_frames, self.stride, tokens.device).view(1, -1, 1).expand(batch, -1, height * width)
        num_rows = -(-num_frames // self.stride) * height * width
        return group_tokens(last_kept(kept), kept.flatten(1), combine="owner", num_rows=num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFewerFrames(InputReducer):
    """Encode every n-th frame only: a control.

    Attributes:
        stride: The n: encode frames 0, n, 2n and so on.
    """

    stride: int = 2

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise VidflowError(f"reducer 'fewer_frames' has stride {self.stride}; wanted 1 or more")

    @property
    def is_even(self) -> bool:
        """Whether no frame is left out."""
        return self.stride == 1

    def kept(self, frames: UInt8[Tensor, "B T Y X 3"], *, patch_size: int) -> Bool[Tensor, "B T N"]:
        """Mark all patches of the frames to encode."""
        batch, num_frames, height, width, _ = frames.shape
        num_patches = (height // patch_size) * (width // patch_size)
        return every_nth_frame(num_frames, self.stride, frames.device).view(1, -1, 1).expand(batch, -1, num_patches)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLowerResolution(ReducerFacts):
    """Shrink frames before the encoder, which is built for the smaller size: a control.

    Attributes:
        keep: Fraction of patches to keep, above 0 and up to 1; the side is rounded to whole patches.
    """

    keep: float = 0.5
    place: ClassVar[Literal["input"]] = "input"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise VidflowError(
                f"reducer 'lower_resolution' has keep {self.keep}; wanted a fraction above 0 and up to 1"
            )

    def side(self, side: int) -> int:
        """Return the smaller side in patches for a given side in patches."""
        return max(1, round(side * math.sqrt(self.keep)))

    def macs(self, shape: VitShape, *, num_blocks: int, counts: Int[np.ndarray, " F"]) -> float:  # noqa: ARG002
        """Return the cost of the smaller frames."""
        side = self.side(shape.grid[0])
        return count_macs(replace(shape, grid=(side, side)), [side**2] * (num_blocks + 1))


def covering_patches(side: int, small_side: int, device: torch.device) -> Int[Tensor, " N"]:
    """Return for every patch of a square grid the patch of a smaller grid that covers its centre."""
    line = ((torch.arange(side, device=device) + 0.5) * small_side / side).long()
    return (line.unsqueeze(1) * small_side + line).flatten()


@dataclass(frozen=True, slots=True, kw_only=True)
class PostRandom(Budget):
    """Keep random cached tokens, equally many in every frame: a control.

    Attributes:
        seed: Number of the random draw; other seeds keep other tokens.
    """

    seed: int = 0
    name: ClassVar[str] = "random"

    @property
    def is_random(self) -> bool:
        """Always."""
        return True

    def assign(self, tokens: Float[Tensor, "B T H W D"], *, seeds: Int[Tensor, " B"] | None = None) -> Assignment:
        """Keep the tokens at random places of every frame."""
        if seeds is None:
            raise ValueError("reducer 'random' draws random numbers: pass the seed of each clip's key")
        batch, num_frames, height, width, _ = tokens.shape
        num_kept = self.num_left(height * width)
        draws = uniform(reseed(seeds, self.seed), num_frames * height * width, stream=0).view(
            batch, num_frames, height * width
        )
        order = draws.argsort(dim=2, stable=True)[:, :, :num_kept]
        kept = torch.zeros_like(draws, dtype=torch.bool).scatter_(2, order, True)
        return keep_tokens(kept.flatten(1), num_rows=num_frames * num_kept)


__all__ = [
    "InputFewerFrames",
    "InputLowerResolution",
    "PostFewerFrames",
    "PostPooling",
    "PostRandom",
    "covering_patches",
    "every_nth_frame",
]
