"""Build a frozen image encoder from any timm vision transformer and run it on decoded frames."""

from vidflow.models.encoder.architecture import (
    check_img_size,
    check_name,
    list_encoders,
    patch_size_of,
    resolve_depths,
    shape_of,
    skeleton,
)
from vidflow.models.encoder.build import EncoderDtype, build_encoder
from vidflow.models.encoder.encoded import EncodedFrames
from vidflow.models.encoder.frozen import FrozenEncoder

__all__ = [
    "EncodedFrames",
    "EncoderDtype",
    "FrozenEncoder",
    "build_encoder",
    "check_img_size",
    "check_name",
    "list_encoders",
    "patch_size_of",
    "resolve_depths",
    "shape_of",
    "skeleton",
]
