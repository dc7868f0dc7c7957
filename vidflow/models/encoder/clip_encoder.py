"""The contract of all encoders: frames of clips in, tokens out. Caches, cores and reports know only this.

Axes: B clips, T input frames, H and W pixels, F output frames, K tapped depths, P prefix tokens, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float16, Int32, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenArrays:
    """The tokens of one clip on the host, in the layout of `vidflow.records.ClipTokens`.

    Attributes:
        tokens: Patch tokens, frame by frame and, within a frame, depth by depth.
        prefix: Class token and registers of each output frame, at the last tapped depth.
        counts: Tokens of each output frame and depth. Tokens that stand for patches of several frames are counted in
            the first one.
        sizes: Number of patches that each token stands for; None without reduction.
        assignment: The token of each frame, depth and patch, as an index into the clip's tokens of that depth; -1 if
            the patch was dropped. None without reduction.
    """

    tokens: Float16[np.ndarray, "tokens D"]
    prefix: Float16[np.ndarray, "F P D"]
    counts: Int32[np.ndarray, "F K"]
    sizes: Float[np.ndarray, " tokens"] | None
    assignment: Int64[np.ndarray, "F K patches"] | None


class Encoded(Protocol):
    """Tokens of a batch of clips, on the encoder's device."""

    def clips(self) -> Iterator[TokenArrays]:
        """Copy them to the host, clip by clip."""
        ...


class ClipEncoder(Protocol):
    """Turns the frames of clips into tokens; it is never trained.

    Attributes:
        embed_dim: Width D of a token.
        grid: Patches per column and per row of an output frame.
        num_prefix_tokens: Class token and registers of an output frame.
        depths: Tapped blocks, from 0, ascending.
        img_size: Side of its square frames in pixels.
        num_frames: Frames that a clip must have, or a multiple of it; None if any number is fine.
        is_causal: Whether an output frame depends on no later input frame, so that a stream can be encoded.
        weights_sha256: Digest of the float32 weights as loaded, before any cast.
    """

    embed_dim: int
    grid: tuple[int, int]
    num_prefix_tokens: int
    depths: list[int]
    img_size: int
    num_frames: int | None
    is_causal: bool
    weights_sha256: str

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Encoded:
        """Encode clips that already have the encoder's size."""
        ...

    def output_frames(self, num_frames: int) -> list[int]:
        """Return, for each output frame of a clip of `num_frames`, the last input frame that it stands for."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the encoder's output, as JSON-ready values."""
        ...


__all__ = ["ClipEncoder", "Encoded", "TokenArrays"]
