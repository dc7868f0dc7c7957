"""One clip as a shard holds it: decoded, resized, cropped, and each frame compressed again as an image."""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vidflow.files import file_state
from vidflow.records import VideoInfo
from vidflow.video.annotations import clip_annotations
from vidflow.video.decode import decode_clip
from vidflow.video.ffmpeg import probe
from vidflow.video.sampling import frames_at


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedClip:
    """Compressed frames of a clip, what is known of them, and their dense ground truth (`.npz` bytes or empty)."""

    images: list[bytes]
    metadata: dict[str, Any]
    annotations: bytes


def encode_clip(
    path: Path,
    times: Sequence[float],
    *,
    decoder: Literal["decord", "pyav"],
    size: int,
    resize_filter: Literal["bilinear", "bicubic", "lanczos", "box"],
    image_format: Literal["jpg", "png"],
    jpeg_quality: int,
    annotations: str = "",
) -> EncodedClip:
    """Decode the frames on display at `times` and compress each.

    Args:
        path: Video file.
        times: Moments in seconds on the video's clock.
        decoder: First choice of decoder.
        size: Side of the square that short-side resizing and centre crop leave, in pixels.
        resize_filter: Resampling filter.
        image_format: `jpg` (4:4:4, no chroma is thrown away) or `png`.
        jpeg_quality: 1 to 100.
        annotations: Path of the video's dense ground truth, or empty.

    Raises:
        VideoError: If the video cannot be decoded.
    """
    info = _probe_once(path, *file_state(path).stamp)
    indices = frames_at(info.pts_seconds, np.asarray(times))
    clip = decode_clip(path, info, indices, decoder=decoder, size=size, resize_filter=resize_filter)
    metadata = {
        "pts_seconds": clip.pts_seconds.tolist(),
        "codec": info.codec,
        "fps": info.fps,
        "width": clip.source_width,
        "height": clip.source_height,
        "decoder": clip.decoder,
    }
    images = [compress(frame, image_format, jpeg_quality) for frame in clip.frames]
    truth = b""
    if annotations:
        truth = clip_annotations(
            Path(annotations),
            clip.pts_seconds,
            source_height=clip.source_height,
            source_width=clip.source_width,
            size=size,
        )
    return EncodedClip(images=images, metadata=metadata, annotations=truth)


@functools.lru_cache(maxsize=64)
def _probe_once(path: Path, num_bytes: int, modified_ns: int) -> VideoInfo:  # noqa: ARG001 - they name the content
    """Probe a file once for the clips that are taken from it, as long as it is among the last few."""
    return probe(path)


def compress(frame: UInt8[np.ndarray, "H W 3"], image_format: Literal["jpg", "png"], jpeg_quality: int) -> bytes:
    """Return a frame as JPEG or PNG bytes."""
    buffer = io.BytesIO()
    if image_format == "jpg":
        Image.fromarray(frame).save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    else:
        Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decompress(image: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Return the frame that `compress` was given, exactly for PNG and nearly for JPEG."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
