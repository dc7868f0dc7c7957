"""One clip as a shard holds it: decoded, resized, cropped, and each frame compressed again as an image."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from vidflow.video.ffmpeg import Pictures, probed
from vidflow.video.sampling import frames_at

# What probing said of the last few files, by path, size and time of change.
_INFOS: dict[tuple[Path, int, int], VideoInfo] = {}
_NUM_INFOS = 64


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
    with _probed_once(path) as (info, opened):
        indices = frames_at(info.pts_seconds, np.asarray(times))
        clip = decode_clip(path, info, indices, decoder=decoder, size=size, resize_filter=resize_filter, opened=opened)
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


@contextmanager
def _probed_once(path: Path) -> Iterator[tuple[VideoInfo, Pictures | None]]:
    """Probe a file once for the clips that are taken from it, as long as it is among the last few."""
    known = (path, *file_state(path).stamp)
    if known in _INFOS:
        yield _INFOS[known], None
        return
    with probed(path) as (info, opened):
        if len(_INFOS) == _NUM_INFOS:
            del _INFOS[next(iter(_INFOS))]
        _INFOS[known] = info
        yield info, opened


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
