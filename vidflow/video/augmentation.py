"""Apply what was drawn for a training clip to all its frames alike, on uint8, as frames are stored.

The only importer of torchvision's transforms.

Axes: T frames, H and W pixels, s side of the result.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import InterpolationMode

from vidflow.video.view_draws import View, shifted_frames

# Source: Krizhevsky et al. 2012, and every released video recipe: the mean colour of ImageNet.
_GREY = (124, 116, 104)


def augment_frames(frames: UInt8[np.ndarray, "T H W 3"], view: View, *, size: int) -> UInt8[Tensor, "T s s 3"]:
    """Return a view of a clip: shifted in time, cropped and resized, mirrored, changed in colour, partly erased.

    Args:
        frames: The stored square frames.
        view: What was drawn.
        size: Side of the result, in pixels.
    """
    pictures = torch.from_numpy(np.ascontiguousarray(frames[shifted_frames(len(frames), view.shift)]))
    pictures = pictures.permute(0, 3, 1, 2)
    # With antialiasing and cubic curves, as extraction resizes the plain view.
    if pictures.shape[-2:] != (size, size) or view.box[2:] != (size, size):
        pictures = functional.resized_crop(
            pictures, *view.box, size=[size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
    if view.is_flipped:
        pictures = functional.horizontal_flip(pictures)
    if view.color is not None:
        pictures = _change_color(pictures, view.color)
    for name, strength in view.operations:
        pictures = _operate(pictures, name, strength)
    if view.erased is not None:
        pictures = _erase(pictures, view.erased)
    return pictures.permute(0, 2, 3, 1).contiguous()


def _change_color(pictures: Tensor, color: tuple[float, float, float, float]) -> Tensor:
    brightness, contrast, saturation, hue = color
    pictures = functional.adjust_brightness(pictures, brightness)
    pictures = functional.adjust_contrast(pictures, contrast)
    pictures = functional.adjust_saturation(pictures, saturation)
    changed: Tensor = functional.adjust_hue(pictures, hue)
    return changed


def _erase(pictures: Tensor, erased: tuple[float, float, float, float]) -> Tensor:
    top, left, height, width = (round(share * pictures.shape[-1]) for share in erased)
    pictures = pictures.clone()
    pictures[..., top : top + height, left : left + width] = pictures.new_tensor(_GREY)[:, None, None]
    return pictures


def _operate(pictures: Tensor, name: str, strength: float) -> Tensor:
    """Apply one operation; `strength` in [-1, 1] has a sign where the operation has two directions."""
    size, share = pictures.shape[-1], abs(strength)
    angle, moved = math.degrees(math.atan(0.3 * strength)), round(150 / 331 * size * strength)
    places: dict[str, dict[str, Any]] = {
        "shear_x": {"shear": [angle, 0.0]},
        "shear_y": {"shear": [0.0, angle]},
        "translate_x": {"translate": [moved, 0]},
        "translate_y": {"translate": [0, moved]},
        "rotate": {"angle": 30 * strength},
    }
    if name in places:
        return _affine(pictures, **places[name])
    colors: dict[str, Callable[[Tensor], Tensor]] = {
        "identity": lambda each: each,
        "brightness": partial(functional.adjust_brightness, brightness_factor=1 + 0.9 * strength),
        "color": partial(functional.adjust_saturation, saturation_factor=1 + 0.9 * strength),
        "contrast": partial(functional.adjust_contrast, contrast_factor=1 + 0.9 * strength),
        "sharpness": partial(functional.adjust_sharpness, sharpness_factor=1 + 0.9 * strength),
        "posterize": partial(functional.posterize, bits=8 - round(4 * share)),
        "solarize": partial(functional.solarize, threshold=255 * (1 - share)),
        "autocontrast": functional.autocontrast,
        "equalize": functional.equalize,
    }
    return colors[name](pictures)


def _affine(
    pictures: Tensor, *, angle: float = 0.0, translate: list[int] | None = None, shear: list[float] | None = None
) -> Tensor:
    moved: Tensor = functional.affine(
        pictures,
        angle=angle,
        translate=translate or [0, 0],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=list(map(float, _GREY)),
    )
    return moved


__all__ = ["augment_frames"]
