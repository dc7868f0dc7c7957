"""Draw textures that repeat without a seam. All have the same texels per metre, so their grain shows the distance.

Axes: S texels a side, 3 the channels red, green, blue in [0, 255].
"""

import colorsys

import numpy as np
from jaxtyping import Float32, Int
from scipy.ndimage import gaussian_filter

TEXELS_PER_METRE = 32

Texture = Float32[np.ndarray, "S S 3"]


def draw_room_texture(rng: np.random.Generator, *, hue: float, contrast: float) -> Texture:
    """Draw a muted, cloudy texture with tiles of one metre.

    Args:
        rng: Source of the clouds.
        hue: Hue of the faint tint, in [0, 1).
        contrast: Step between neighbouring tiles, in [0, 255].
    """
    side = 8 * TEXELS_PER_METRE
    tile = _checker(side, TEXELS_PER_METRE)
    grey = rng.uniform(80, 140) + contrast * (tile - 0.5) + 14 * _clouds(rng, side, 3.0)
    texture: Texture = grey[..., None] * _tint(hue, saturation=0.2)
    return texture


def draw_plain_texture(rng: np.random.Generator, *, saturation: float) -> Texture:
    """Draw a muted texture of soft blotches for an object that is not the target.

    Args:
        rng: Source of the colour and of the blotches.
        saturation: Strength of its tint, in [0, 1].
    """
    grey = rng.choice([50.0, 205.0]) + rng.uniform(-20, 20) + 22 * _clouds(rng, 64, 2.5)
    texture: Texture = grey[..., None] * _tint(rng.uniform(0.3, 0.75), saturation=saturation)
    return texture


def draw_target_texture(rng: np.random.Generator) -> Texture:
    """Draw stripes of two saturated warm colours, which nothing else in the scene has."""
    colours = [colorsys.hsv_to_rgb(rng.uniform(*hues) % 1, 0.95, 1.0) for hues in ((-0.08, 0.03), (0.09, 0.16))]
    width = int(rng.choice([4, 8]))
    stripe = np.arange(64) // width % 2
    texture = np.asarray(colours, dtype=np.float32)[np.broadcast_to(stripe, (64, 64))] * np.float32(255)
    return texture if rng.random() < 0.5 else texture.transpose(1, 0, 2)


def _checker(side: int, step: int) -> Int[np.ndarray, "S S"]:
    even = np.arange(side) // step % 2
    return even[:, None] ^ even


def _clouds(rng: np.random.Generator, side: int, radius: float) -> Float32[np.ndarray, "S S"]:
    noise = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), radius, mode="wrap", truncate=2.5)
    clouds: Float32[np.ndarray, "S S"] = noise / noise.std()
    return clouds


def _tint(hue: float, *, saturation: float) -> Float32[np.ndarray, " 3"]:
    return np.asarray(colorsys.hsv_to_rgb(hue, saturation, 1.0), dtype=np.float32)
