"""Decode the wanted frames of a video with decord or PyAV, and resize and crop each to a square.

Axes: T frames of a clip, H and W pixels, 3 the channels red, green, blue.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vidflow.records import Clip, VideoInfo
from vidflow.tar_members import find_member
from vidflow.video import ffmpeg

Decoder = Literal["decord", "pyav"]
ResizeFilter = Literal["bilinear", "bicubic", "lanczos", "box"]
Crop = Literal["center", "left", "right"]

Frame = UInt8[np.ndarray, "H W 3"]

# Formats that decord and PyAV convert to the same RGB bytes if both sides are even.
_DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p", "nv12"}

# decord stores times as 32-bit floats, with a relative error of 6e-8. Containers count milliseconds or finer units.
_TIME_TOLERANCE_SECONDS = 4e-4
_TIME_TOLERANCE_RELATIVE = 1e-6

# With any positive fraction decord raises an error instead of silently replacing a broken frame by another one.
_FAULT_TOLERANCE = 1e-6


class _NotForDecordError(Exception):
    """decord cannot decode this video exactly; the message says why."""


def decode_clip(
    path: Path,
    info: VideoInfo,
    indices: Int64[np.ndarray, " T"],
    *,
    decoder: Decoder,
    size: int,
    resize_filter: ResizeFilter,
    short_side: int | None = None,
    crop: Crop = "center",
    opened: ffmpeg.Pictures | None = None,
) -> Clip:
    """Decode frames, resize the short side of each and crop a square; see `crop_square`.

    PyAV returns the same frames as decoding the file from the start. With `decoder="decord"`, PyAV still makes the
    frames if:

    - the container is not MP4, MOV, Matroska, WebM or FLV;
    - the container's keyframes are not exactly the frames at which decoding may start;
    - the picture is rotated, mirrored, has an odd side or is not 8-bit 4:2:0;
    - decord raises an error, or its frame count or times differ from the container's.

    This rule depends on the video alone. decord conceals damage without an error, so PyAV decodes the same frames
    too and must report no error. The clip records which decoder made its frames.

    Args:
        path: Video file.
        info: Result of `ffmpeg.probe`.
        indices: Frames wanted, as positions in `info.pts_seconds`; repeats allowed.
        decoder: Preferred decoder.
        size: Side of the square, in pixels.
        resize_filter: Resampling filter, antialiased.
        short_side: Short side after resizing, in pixels; None is `size`.
        crop: Where the square is on the long side.
        opened: Function that `ffmpeg.probed` yielded, if the file is still open.

    Raises:
        VideoError: `DecodeError` if PyAV cannot decode a wanted frame; a reason of `ffmpeg.probe` if the file has
            changed.
    """
    wanted = sorted(set(indices.tolist()))
    cut = functools.partial(crop_square, size=size, resize_filter=resize_filter, short_side=short_side, crop=crop)
    frames, name = _decode(path, info, wanted, decoder, cut, opened)
    return Clip(
        frames=np.stack([frames[index] for index in indices.tolist()]),
        pts_seconds=info.pts_seconds[indices],
        source_height=info.height,
        source_width=info.width,
        decoder=name,
    )


def crop_square(
    frame: Frame,
    size: int,
    resize_filter: ResizeFilter,
    short_side: int | None = None,
    crop: Crop = "center",
) -> UInt8[np.ndarray, "size size 3"]:
    """Resize the short side to `short_side`, by default `size`, and keep a square of `size`, in one step.

    The edges of the square are not rounded to whole pixels of the resized picture, so ground truth in fractions of the
    central square stays exact. `left` is the top of a picture that is higher than wide. Along the short side the square
    is always in the middle.
    """
    height, width = frame.shape[:2]
    side = min(height, width) * size / (short_side or size)
    where = {"left": 0.0, "center": 0.5, "right": 1.0}[crop]
    left = (width - side) * (where if width > height else 0.5)
    top = (height - side) * (where if height > width else 0.5)
    square = Image.fromarray(np.ascontiguousarray(frame)).resize(
        (size, size), _pillow_filter(resize_filter), box=(left, top, left + side, top + side)
    )
    return np.asarray(square)


def _pillow_filter(resize_filter: ResizeFilter) -> Image.Resampling:
    match resize_filter:
        case "bilinear":
            return Image.Resampling.BILINEAR
        case "bicubic":
            return Image.Resampling.BICUBIC
        case "lanczos":
            return Image.Resampling.LANCZOS
        case "box":
            return Image.Resampling.BOX
        case _:
            assert_never(resize_filter)


def _decode(
    path: Path,
    info: VideoInfo,
    wanted: Sequence[int],
    decoder: Decoder,
    cut: Callable[[Frame], Frame],
    opened: ffmpeg.Pictures | None,
) -> tuple[dict[int, Frame], str]:
    """Return each wanted frame, cropped, and the name of the decoder that made them all."""
    if decoder == "decord":
        try:
            frames, name = _decode_with_decord(path, info, wanted)
        except _NotForDecordError:
            pass
        else:
            for _ in opened(wanted) if opened else ffmpeg.pictures(path, info, wanted):
                pass  # raises an error if a frame is damaged
            return {index: cut(frame) for index, frame in frames}, name
    # One at a time: all frames of a 4K clip at full size would fill the memory.
    shown = ffmpeg.decode(path, info, wanted, opened=opened)
    return {index: cut(frame) for index, frame in shown}, ffmpeg.PYAV_VERSION


def _decode_with_decord(path: Path, info: VideoInfo, wanted: Sequence[int]) -> tuple[list[tuple[int, Frame]], str]:
    """Decode with a new reader and one batch, because a reader that is kept decodes ahead without limit.

    Raises:
        _NotForDecordError: If PyAV must decode the video.
    """
    if info.has_leading_frames:
        raise _NotForDecordError("after a seek it would count frames that are shown before the keyframe")
    if info.width % 2 or info.height % 2:
        raise _NotForDecordError("it repeats chroma at an odd edge where FFmpeg interpolates")
    if info.rotation_degrees or info.mirrored or info.pixel_format not in _DECORD_PIXEL_FORMATS:
        raise _NotForDecordError(f"{info.pixel_format}, rotated by {info.rotation_degrees} degrees")
    try:
        import decord  # here, because some platforms have no build of it, and importing it is slow on others
        from decord._ffi.base import DECORDError, DECORDLimitReachedError
    except ImportError as error:
        raise _NotForDecordError("not installed") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        member = find_member(path)
        name = member.url if member else os.path.abspath(path)
        reader = decord.VideoReader(name, num_threads=1, fault_tol=_FAULT_TOLERANCE)
        _check_reader(reader, info, wanted)
        batch: UInt8[np.ndarray, "wanted H W 3"] = reader.get_batch(wanted).asnumpy()
    except (DECORDError, DECORDLimitReachedError, RuntimeError) as error:
        raise _NotForDecordError(str(error)) from error
    if batch.shape[1:3] != (info.height, info.width):
        raise _NotForDecordError(f"frames of {batch.shape[2]}x{batch.shape[1]}")
    return list(zip(wanted, batch, strict=True)), f"decord {decord.__version__}"


def _check_reader(reader: Any, info: VideoInfo, wanted: Sequence[int]) -> None:
    """Check that decord's frame numbers are positions in the order of presentation."""
    if len(reader) != len(info.pts_seconds):
        raise _NotForDecordError(f"{len(reader)} of {len(info.pts_seconds)} frames")
    times = info.pts_seconds[wanted] - info.pts_seconds[0]  # its clock starts with the first frame
    strayed = np.abs(reader.get_frame_timestamp(wanted)[:, 0] - times)
    if (strayed > _TIME_TOLERANCE_SECONDS + _TIME_TOLERANCE_RELATIVE * times).any():
        raise _NotForDecordError(f"times off by {strayed.max()} s")
    if sorted(reader.get_key_indices()) != [point.index for point in info.access_points]:
        raise _NotForDecordError("it would seek to frames at which decoding cannot start")
