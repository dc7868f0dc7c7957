"""Clips from videos: the wanted frames, resized and cropped to a square, by decord or by PyAV.

Axes: T frames of a clip, H and W pixels, 3 the channels red, green, blue.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vidflow.records import Clip, VideoInfo
from vidflow.video import ffmpeg

Decoder = Literal["decord", "pyav"]
ResizeFilter = Literal["bilinear", "bicubic", "lanczos", "box"]

Frame = UInt8[np.ndarray, "H W 3"]

# What decord and PyAV turn into the same RGB, byte for byte where both sides are even.
_DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p", "nv12"}

# decord holds times as 32-bit floats: their step is 6e-8 of the time, and containers count milliseconds or finer.
_TIME_TOLERANCE_SECONDS = 4e-4
_TIME_TOLERANCE_RELATIVE = 1e-6

# Any positive fraction makes decord raise where it would silently put another frame in a broken one's place.
_NO_SUBSTITUTES = 1e-6


class _NotForDecordError(Exception):
    """decord cannot be trusted with this video, for the reason given."""


def decode_clip(
    path: Path,
    info: VideoInfo,
    indices: Int64[np.ndarray, " T"],
    *,
    decoder: Decoder,
    size: int,
    resize_filter: ResizeFilter,
    opened: ffmpeg.Pictures | None = None,
) -> Clip:
    """Decode frames and make each a square: short side to `size`, centre crop.

    PyAV gives the frames that decoding from the start gives. With `decord` as the first choice, a video goes to PyAV
    by a rule that depends on the video alone: where its container is none of MP4, MOV, Matroska, WebM and FLV; where
    the container's keyframes are not those at which decoding may start; where the picture is turned, mirrored, of odd
    sides or not 8-bit 4:2:0; where decord raises, or counts or times the frames differently from the container. As
    decord paints over damage and says nothing, PyAV decodes beside it and must report no error. The clip says who
    made the frames.

    Args:
        path: Video file.
        info: What `ffmpeg.probe` said of it.
        indices: Frames wanted, as positions in `info.pts_seconds`; repeats allowed.
        decoder: First choice.
        size: Side of the square, in pixels.
        resize_filter: Resampling filter, antialiased.
        opened: What `ffmpeg.probed` gave, if the file is still open.

    Raises:
        VideoError: `DecodeError` if a wanted frame cannot be had from PyAV either, or a reason of
            `ffmpeg.probe` if the file has changed.
    """
    wanted = sorted(set(indices.tolist()))
    frames, name = _decode(path, info, wanted, decoder, size, resize_filter, opened)
    return Clip(
        frames=np.stack([frames[index] for index in indices.tolist()]),
        pts_seconds=info.pts_seconds[indices],
        source_height=info.height,
        source_width=info.width,
        decoder=name,
    )


def crop_square(frame: Frame, size: int, resize_filter: ResizeFilter) -> UInt8[np.ndarray, "size size 3"]:
    """Resize the short side to `size` and keep the centre, in one step.

    The crop is the exact central square: its edges are not rounded to whole pixels of the resized
    picture, so that ground truth in fractions of the crop stays exact.
    """
    height, width = frame.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
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
    size: int,
    resize_filter: ResizeFilter,
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
                pass  # raises where decord's frame would be one that was painted over
            return {index: crop_square(frame, size, resize_filter) for index, frame in frames}, name
    # One at a time, as the full frames of a clip of 4K video would fill the memory.
    shown = ffmpeg.decode(path, info, wanted, opened=opened)
    return {index: crop_square(frame, size, resize_filter) for index, frame in shown}, ffmpeg.PYAV_VERSION


def _decode_with_decord(path: Path, info: VideoInfo, wanted: Sequence[int]) -> tuple[list[tuple[int, Frame]], str]:
    """Decode with a fresh reader and one batch: a reader that lives on decodes ahead without bound.

    Raises:
        _NotForDecordError: If PyAV has to do it.
    """
    if info.has_leading_frames:
        raise _NotForDecordError("after a seek it would count frames that are shown before the keyframe")
    if info.width % 2 or info.height % 2:
        raise _NotForDecordError("it repeats chroma at an odd edge where FFmpeg interpolates")
    if info.rotation_degrees or info.mirrored or info.pixel_format not in _DECORD_PIXEL_FORMATS:
        raise _NotForDecordError(f"{info.pixel_format}, rotated by {info.rotation_degrees} degrees")
    try:
        import decord  # here, as there is no build of it for some machines, and it slows the import of others
        from decord._ffi.base import DECORDError, DECORDLimitReachedError
    except ImportError as error:
        raise _NotForDecordError("not installed") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=_NO_SUBSTITUTES)
        _check_reader(reader, info, wanted)
        batch: UInt8[np.ndarray, "wanted H W 3"] = reader.get_batch(wanted).asnumpy()
    except (DECORDError, DECORDLimitReachedError, RuntimeError) as error:
        raise _NotForDecordError(str(error)) from error
    if batch.shape[1:3] != (info.height, info.width):
        raise _NotForDecordError(f"frames of {batch.shape[2]}x{batch.shape[1]}")
    return list(zip(wanted, batch, strict=True)), f"decord {decord.__version__}"


def _check_reader(reader: Any, info: VideoInfo, wanted: Sequence[int]) -> None:
    """Refuse where decord's frame numbers are not positions in the order of presentation."""
    if len(reader) != len(info.pts_seconds):
        raise _NotForDecordError(f"{len(reader)} of {len(info.pts_seconds)} frames")
    times = info.pts_seconds[wanted] - info.pts_seconds[0]  # its clock starts with the first frame
    strayed = np.abs(reader.get_frame_timestamp(wanted)[:, 0] - times)
    if (strayed > _TIME_TOLERANCE_SECONDS + _TIME_TOLERANCE_RELATIVE * times).any():
        raise _NotForDecordError(f"times off by {strayed.max()} s")
    if sorted(reader.get_key_indices()) != [point.index for point in info.access_points]:
        raise _NotForDecordError("it would seek to where decoding cannot start")
