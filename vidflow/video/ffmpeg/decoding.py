"""Decoding frames exactly: found by presentation time, upright, as RGB.

Axes: H and W pixels, 3 the channels red, green, blue. A tick is one unit of a stream's time base.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from vidflow.errors import VideoError
from vidflow.records import VideoInfo
from vidflow.video.ffmpeg.opening import UNTIMED_FORMATS, opened

# Wanted frames further apart than this are reached by seeking, nearer ones by decoding all between.
_JUMP_SECONDS = 2.0


def decode(path: Path, info: VideoInfo, indices: Sequence[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Yield `(index, frame)` for every distinct wanted frame, in ascending order, upright and as RGB.

    A frame is found by its presentation time, so that neither B-frames nor a variable frame rate nor
    where a seek lands can shift it. Any pixel format is converted to 8 bits.

    Args:
        path: Video file.
        info: What `probe` said of it.
        indices: Frames wanted, as positions in `info.pts_seconds`.

    Raises:
        VideoError: `DecodeError` if a wanted frame is missing or damaged, or a reason of `probe`.
    """
    wanted = sorted(set(indices))
    with opened(path) as (container, stream):
        stream.codec_context.thread_count = 1
        if container.format.name in UNTIMED_FORMATS:
            frames = _pick_by_order(_frames_on(container, stream), wanted)
        else:
            frames = _pick_by_time(container, stream, _ticks(info, stream), wanted)
        for index in wanted:
            frame = next(frames, None)
            if frame is None or frame.is_corrupt:
                state = "is missing" if frame is None else "is damaged"
                raise VideoError(
                    "DecodeError",
                    f"{path}: frame {index} of {len(info.pts_seconds)}, at {info.pts_seconds[index]:.3f} s, {state}; "
                    "fetch the video again or re-encode it",
                )
            pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
            yield index, np.rot90(pixels, info.rotation_degrees // 90)


def _ticks(info: VideoInfo, stream: VideoStream) -> list[int]:
    """Return the tick of every frame; exact, as a double holds any tick that `_seconds` divided."""
    assert stream.time_base is not None
    return [round(pts * stream.time_base.denominator / stream.time_base.numerator) for pts in info.pts_seconds.tolist()]


def _frames_on(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode from here to the end; a packet that cannot be decoded is missed where its frame is wanted."""
    for packet in container.demux(stream):
        try:
            yield from stream.decode(packet)
        except MemoryError:  # FFmpeg's is both; it says nothing of the video
            raise
        except FFmpegError:
            continue


def _pick_by_order(frames: Iterator[VideoFrame], wanted: Sequence[int]) -> Iterator[VideoFrame]:
    remaining = set(wanted)
    return (frame for index, frame in enumerate(frames) if index in remaining)


def _pick_by_time(
    container: InputContainer, stream: VideoStream, ticks: Sequence[int], wanted: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames at the wanted positions of `ticks`; end where one is not there."""
    assert stream.time_base is not None
    jump = round(_JUMP_SECONDS / stream.time_base)
    position, frames = ticks[0], _frames_on(container, stream)
    for target in (ticks[index] for index in wanted):
        if target - position > jump:
            frames = _frames_before(container, stream, target, first=ticks[0], step=jump)
        frame = next((frame for frame in frames if frame.pts is not None and frame.pts >= target), None)
        if frame is None or frame.pts != target:
            return
        position = target
        yield frame


def _frames_before(
    container: InputContainer, stream: VideoStream, target: int, *, first: int, step: int
) -> Iterator[VideoFrame]:
    """Seek so that decoding starts at or before `target`; yield nothing where that is impossible.

    A container seeks by decoding time, and frames that lean on an earlier keyframe than the one found
    cannot be decoded, so the first frame to come out may be too late: then step back, twice as far each time.
    """
    start, floor = target, first - step  # below the first frame, as its decoding time is below its own
    while True:
        try:
            container.seek(start, stream=stream)
        except FFmpegError:  # some formats refuse a time before the first
            return iter(())
        frames = _frames_on(container, stream)
        head = next(frames, None)
        if head is not None and head.pts is not None and head.pts <= target:
            return chain([head], frames)
        if start <= floor:
            return iter(())
        start, step = max(floor, start - step), 2 * step
