"""The output of a clip encoder: tokens of clips, and the patches and frames that they stand for.

Axes: B clips, M tokens of a clip, P prefix tokens (class token), D width, F output frames, H and W the grid, N tokens
of an output frame.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedClips:
    """Tokens of a batch of clips.

    Attributes:
        tokens: Patch tokens of each clip. With `by_frame` they are F runs of M / F tokens, one per output frame.
        prefix: Class token of each clip; there may be none.
        grid: Output frames F, and patches per column and per row of each, before any reduction.
        frame_of: The input frames that each output frame stands for.
        by_frame: Whether each token belongs to one output frame, all with equally many.
        sizes: Number of patches each token stands for; None without reduction.
        assignment: Index of the token of each of the F x H x W patches of the clip, -1 if it was dropped or replaced;
            None without reduction.
    """

    tokens: Float[Tensor, "B M D"]
    prefix: Float[Tensor, "B P D"]
    grid: tuple[int, int, int]
    frame_of: tuple[tuple[int, ...], ...]
    by_frame: bool
    sizes: Float[Tensor, "B M"] | None = None
    assignment: Int[Tensor, "B patches"] | None = None

    def frames(self) -> Float[Tensor, "B F N D"]:
        """Return the tokens of each output frame.

        Raises:
            ValueError: Tokens stand for patches of several frames; use `unmerged`.
        """
        if not self.by_frame:
            raise ValueError("tokens were matched across frames, so a token has no frame of its own; use unmerged()")
        frames: Tensor = self.tokens.unflatten(1, (self.grid[0], -1))
        return frames

    def unmerged(self) -> Float[Tensor, "B F H W D"]:
        """Copy every token to the patches that it stands for; dropped patches are zero."""
        patches = self.tokens
        if self.assignment is not None:
            index = self.assignment.clamp(min=0).unsqueeze(-1).expand(-1, -1, patches.shape[2])
            patches = patches.gather(1, index) * (self.assignment >= 0).unsqueeze(-1)
        return patches.view(-1, *self.grid, patches.shape[2])


__all__ = ["EncodedClips"]
