"""Make a clip of a shard: decode, resize and crop its frames, and compress each as an image."""

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

# Results of probing the last few files, by path, size and modification time.
_INFOS: dict[tuple[Path, int, int], VideoInfo] = {}
_NUM_INFOS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedClip:
    """Compressed frames of a clip, their metadata, and their dense ground truth (`.npz` bytes or empty)."""

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
    short_side: int | None = None,
    crop: Literal["center", "left", "right"] = "center",
    annotations: str = "",
) -> EncodedClip:
    """Decode the frames on display at `times` and compress each.

    Args:
        path: Video file.
        times: Times in seconds on the video's clock.
        decoder: Preferred decoder.
        size: Side of the square after resizing the short side and cropping, in pixels.
        resize_filter: Resampling filter.
        image_format: `jpg` (4:4:4, chroma is not subsampled) or `png`.
        jpeg_quality: 1 to 100.
        short_side: Short side after resizing, in pixels; None is `size`. Annotations want None.
        crop: Where the square is on the long side. Annotations want the centre.
        annotations: Path of the video's dense ground truth, or empty.

    Raises:
        VideoError: If the video cannot be decoded.
    """
    with _probe_cached(path) as (info, opened):
        indices = frames_at(info.pts_seconds, np.asarray(times))
        clip = decode_clip(
            path,
            info,
            indices,
            decoder=decoder,
            size=size,
            resize_filter=resize_filter,
            short_side=short_side,
            crop=crop,
            opened=opened,
        )
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
def _probe_cached(path: Path) -> Iterator[tuple[VideoInfo, Pictures | None]]:
    """Probe a file, or reuse the result if it is one of the last few files that were probed."""
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
    """Return the frame that `compress` was given: exact for PNG, approximate for JPEG."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
