"""Draw what changes in a training clip: once per clip, from a seed.

What is drawn depends on the seed, the epoch and the clip's key only: not on workers, order or restarts.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from vidflow.config.schema import Augmentation

# Source: Zhong et al. 2020 (arXiv 1708.04896), random erasing: area and aspect of the rectangle.
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10
_HUE_SHARE = 0.1
_TOP = 10

_OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""RandAugment's operations. Source: Cubuk et al. 2020 (arXiv 1909.13719), with torchvision's ranges."""
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What was drawn for a clip.

    Attributes:
        box: Top, left, height and width of the crop, in pixels.
        is_flipped: Whether the clip is mirrored left to right.
        shift: Frames by which the clip starts later; negative is earlier.
        color: Factors of brightness, contrast and saturation, and the shift of the hue; None: unchanged.
        operations: RandAugment's operations with their signed strength in [-1, 1].
        erased: Top, left, height and width of the grey rectangle, as shares of the side; None: none.
    """

    box: Box
    is_flipped: bool
    shift: int
    color: tuple[float, float, float, float] | None
    operations: tuple[tuple[str, float], ...]
    erased: tuple[float, float, float, float] | None


def clip_generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Return the random numbers of a clip in an epoch."""
    words = np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], np.uint32)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, *map(int, words)])))


def draw_view(settings: Augmentation, rng: np.random.Generator, *, size: int) -> View:
    """Draw a view of a clip.

    Args:
        settings: What may change.
        rng: The clip's random numbers.
        size: Side of the stored square frames, in pixels.
    """
    return View(
        box=_draw_crop(settings, rng, size),
        is_flipped=bool(rng.random() < settings.flip),
        shift=int(rng.integers(-settings.temporal_shift, settings.temporal_shift + 1)),
        color=_draw_color(settings.color_jitter, rng),
        operations=tuple(
            (_OPERATIONS[int(rng.integers(len(_OPERATIONS)))], _signed(settings.randaugment_magnitude / _TOP, rng))
            for _ in range(settings.randaugment_layers)
        ),
        erased=_draw_erased(rng) if rng.random() < settings.erasing else None,
    )


def shifted_frames(num_frames: int, shift: int) -> Int[np.ndarray, " T"]:
    """Return the source of each frame of a clip that starts `shift` frames later; frames at the border repeat."""
    return np.arange(shift, shift + num_frames).clip(0, num_frames - 1)


def _draw_crop(settings: Augmentation, rng: np.random.Generator, size: int) -> Box:
    """Draw a rectangle; the whole frame if no rectangle of the drawn shapes fits.

    Source: Szegedy et al. 2015 (arXiv 1409.4842); logarithm of the aspect uniform and ten tries as in torchvision.
    """
    if settings.crop_area is None:
        return 0, 0, size, size
    low, high = map(math.log, settings.crop_aspect)
    for _ in range(_TRIES):
        area = size**2 * rng.uniform(*settings.crop_area)
        aspect = math.exp(rng.uniform(low, high))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
            return int(top), int(left), height, width
    return 0, 0, size, size


def _draw_color(strength: float, rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    if not strength:
        return None
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3).tolist()
    return brightness, contrast, saturation, float(rng.uniform(-1, 1)) * _HUE_SHARE * strength


def _draw_erased(rng: np.random.Generator) -> tuple[float, float, float, float]:
    area, aspect = (
        rng.uniform(*_ERASED_AREA),
        math.exp(rng.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1]))),
    )
    height, width = min(1.0, math.sqrt(area / aspect)), min(1.0, math.sqrt(area * aspect))
    return rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width


def _signed(strength: float, rng: np.random.Generator) -> float:
    return strength if rng.random() < 0.5 else -strength


__all__ = ["View", "clip_generator", "draw_view", "shifted_frames"]
