"""Frames at an encoder's size.

Axes: B frames, H and W pixels, h and w pixels of the encoder's input.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor


def fit_frames(frames: UInt8[Tensor, "B H W 3"], img_size: int) -> UInt8[Tensor, "B h w 3"]:
    """Return square frames at the encoder's size; larger ones are resized (bicubic, antialiased)."""
    if frames.shape[1] == img_size:
        return frames
    small = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), size=(img_size, img_size), mode="bicubic", antialias=True
    )
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


__all__ = ["fit_frames"]
