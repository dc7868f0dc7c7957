"""The tokens of clips on their way through the blocks.

Axes: B clips, S tokens of a sequence (P prefix tokens, then n patch tokens), D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTokens:
    """A sequence of tokens, and the patches of the clip that they stand for.

    Attributes:
        tokens: Prefix, then patch tokens, frame by frame.
        num_prefix: Number of prefix tokens, P.
        sizes: Number of patches each patch token stands for.
        assignment: Token of each patch of the clip, -1 if it was dropped or replaced.
        positions: Frame, row and column of each patch token; None if no rotary embedding needs them.
        is_merged: Whether tokens have been merged.
    """

    tokens: Float[Tensor, "B S D"]
    num_prefix: int
    sizes: Float[Tensor, "B n"]
    assignment: Int[Tensor, "B patches"]
    positions: Float[Tensor, "B n 3"] | None
    is_merged: bool = False

    @property
    def prefix(self) -> Float[Tensor, "B P D"]:
        """The class token."""
        return self.tokens[:, : self.num_prefix]

    @property
    def patches(self) -> Float[Tensor, "B n D"]:
        """The patch tokens."""
        return self.tokens[:, self.num_prefix :]

    def size_bias(self, proportional: bool) -> Float[Tensor, "B n"] | None:
        """Return the bias of each patch token's key, the log of its size; None if there is nothing to add."""
        return self.sizes.log() if proportional and self.is_merged else None


def whole_clip(
    tokens: Float[Tensor, "B S D"], *, num_prefix: int, grid: tuple[int, int, int], is_rotary: bool
) -> ClipTokens:
    """Return the tokens of whole clips, before any reduction."""
    batch, num_patches = tokens.shape[0], tokens.shape[1] - num_prefix
    places = [torch.arange(side, device=tokens.device, dtype=torch.float32) for side in grid]
    return ClipTokens(
        tokens=tokens,
        num_prefix=num_prefix,
        sizes=torch.ones(batch, num_patches, device=tokens.device),
        assignment=torch.arange(num_patches, device=tokens.device).expand(batch, -1),
        positions=torch.cartesian_prod(*places).expand(batch, -1, -1) if is_rotary else None,
    )


def pad_prefix(bias: Float[Tensor, "B n"] | None, num_prefix: int) -> Float[Tensor, "B S"] | None:
    """Give prefix tokens the size one."""
    return None if bias is None else F.pad(bias, (num_prefix, 0))


__all__ = ["ClipTokens", "pad_prefix", "whole_clip"]
