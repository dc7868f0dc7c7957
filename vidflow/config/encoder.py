"""The settings of an encoder that apply to its kind: image encoder or video transformer."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vidflow.config.schema import Encoder

VIDEO_SUFFIXES = (".safetensors", ".pt", ".pth", ".pyth")
"""Files of weights of video transformers."""
_IMAGE = ("name", "img_size", "mean", "std")
_VIDEO = ("family", "size", "settings")


def image_settings(encoder: Encoder) -> dict[str, Any]:
    """Return the settings of an image encoder."""
    return {key: value for key, value in asdict(encoder).items() if key not in _VIDEO}


def video_settings(encoder: Encoder) -> dict[str, Any]:
    """Return the settings of a video transformer."""
    return {key: value for key, value in asdict(encoder).items() if key not in _IMAGE}


def encoder_settings(encoder: Encoder) -> dict[str, Any]:
    """Return the settings that apply."""
    return image_settings(encoder) if encoder.family == "image" else video_settings(encoder)


def encoder_title(encoder: Encoder) -> str:
    """Return a few words that name an encoder."""
    return encoder.name if encoder.family == "image" else " ".join(filter(None, (encoder.family, encoder.size)))


def is_path(family: str, weights: str) -> bool:
    """Whether the weights are a path, not a name on the hub or a seed."""
    if weights == "hub" or weights.startswith("random:"):
        return False
    # An id on the hub looks like a path of two parts.
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", weights) and not weights.endswith(VIDEO_SUFFIXES)
    return family == "image" or not is_id or Path(weights).exists()


def misplaced_settings(encoder: Encoder) -> list[str]:
    """Return a problem for every setting that has no meaning for this kind of encoder."""
    idle = _VIDEO[1:] if encoder.family == "image" else _IMAGE
    plain = {each.name: getattr(Encoder(), each.name) for each in fields(encoder)}
    return [
        f"encoder.{key}: got {getattr(encoder, key)!r}, but encoder.family {encoder.family!r} has no such setting"
        + ("" if encoder.family == "image" else "; its weights decide this")
        for key in idle
        if getattr(encoder, key) != plain[key]
    ]


__all__ = [
    "VIDEO_SUFFIXES",
    "encoder_settings",
    "encoder_title",
    "image_settings",
    "is_path",
    "misplaced_settings",
    "video_settings",
]
