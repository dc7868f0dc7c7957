"""The clip that an encoder wants, its check, and the normalisation of pixels.

Axes: B clips, T input frames, Y and X pixels, F output frames, H and W the grid.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.video.families import Fps


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipGeometry:
    """The clips of an encoder.

    Attributes:
        num_frames: Input frames T.
        tubelet: Consecutive frames of one patch.
        img_size: Side of the square frames in pixels.
        patch_size: Side of a square patch in pixels.
        fps: Frames per second that the weights were trained on, or `uniform`: middles of equal segments of the video.
        mean: Mean per channel of pixels scaled to `input_range`.
        std: Standard deviation per channel, likewise.
        input_range: Range that pixel values 0 to 255 are scaled to.
    """

    num_frames: int
    tubelet: int
    img_size: int
    patch_size: int
    fps: Fps
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_range: tuple[float, float]

    def __post_init__(self) -> None:
        if self.num_frames < self.tubelet or self.num_frames % self.tubelet:
            raise VidflowError(
                f"num_frames is {self.num_frames}, but the encoder joins {self.tubelet} frames in a patch; wanted a "
                f"multiple of {self.tubelet}"
            )
        if self.img_size < self.patch_size or self.img_size % self.patch_size:
            raise VidflowError(
                f"the frames' side is {self.img_size} pixels, but patches have {self.patch_size}; wanted a multiple"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Output frames, and patches per column and per row of each."""
        side = self.img_size // self.patch_size
        return self.num_frames // self.tubelet, side, side

    @property
    def num_patches(self) -> int:
        """Patches of a clip."""
        return math.prod(self.grid)

    @property
    def frame_of(self) -> tuple[tuple[int, ...], ...]:
        """The input frames of each output frame."""
        starts = range(0, self.num_frames, self.tubelet)
        return tuple(tuple(range(start, start + self.tubelet)) for start in starts)

    def check(self, frames: Tensor, *, name: str) -> None:
        """Check a batch of clips before it is encoded: some libraries run on the wrong clips without an error.

        Raises:
            VidflowError: The clips have another number of frames, another size or another kind of number.
        """
        wanted = (self.num_frames, self.img_size, self.img_size, 3)
        if frames.ndim != 5 or frames.shape[4] != 3 or frames.dtype != torch.uint8:
            raise VidflowError(
                f"clips are {frames.dtype} {tuple(frames.shape)}; {name} wants uint8 (B, {', '.join(map(str, wanted))})"
            )
        num_frames, height, width = frames.shape[1:4]
        if num_frames != self.num_frames:
            raise VidflowError(f"clips have {num_frames} frames; {name} wants {self.num_frames}")
        if (height, width) != (self.img_size, self.img_size):
            raise VidflowError(f"frames are {height} x {width} pixels; {name} wants {self.img_size} x {self.img_size}")

    def normalise(self, frames: UInt8[Tensor, "B T Y X 3"], dtype: torch.dtype) -> Float[Tensor, "B T 3 Y X"]:
        """Scale and normalise pixels in float32, then cast."""
        low, high = self.input_range
        to_pixels = 255 / (high - low)
        offset = frames.new_tensor(self.mean, dtype=torch.float32).sub(low) * to_pixels
        scale = frames.new_tensor(self.std, dtype=torch.float32) * to_pixels
        return ((frames.float() - offset) / scale).permute(0, 1, 4, 2, 3).to(dtype)


__all__ = ["ClipGeometry"]
