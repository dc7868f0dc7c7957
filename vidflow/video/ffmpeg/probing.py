"""Probing: frame times and picture format of a video, and whether the whole of it is there.

Axes: a tick is one unit of a stream's time base.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import InvalidDataError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float64, Int

from vidflow.errors import VideoError
from vidflow.records import VideoInfo
from vidflow.video.ffmpeg.opening import UNTIMED_FORMATS, opened, truncated

# Matroska and AVI state the duration ahead of the frames; in a whole file it may be off by a little.
_DURATION_SLACK_SECONDS = 0.5


@dataclass(slots=True)
class _Contents:
    """What the packets of a video stream told, in coding order: the tick and duration of every frame shown."""

    num_whole: int = 0
    ticks: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    end_seconds: float = 0.0
    first: VideoFrame | None = None


def probe(path: Path) -> VideoInfo:
    """Read the frame times and the picture format of a video.

    All packets are read; of the frames only the first is decoded, for it alone carries the
    rotation. Pixels count as square and mirroring is ignored, whatever the file asks for, as with
    the other decoders in use.

    Raises:
        VideoError: `Missing`, `NotAFile`, `Empty`, `Unreadable`, `NotAVideo`, `NoVideoStream`,
            `UnknownCodec`, `NoFrames`, `NoTimestamps`, `Truncated`, `Corrupt` or `DecodeError`.
    """
    with opened(path) as (container, stream):
        num_listed = len(stream.index_entries)  # asked before reading, which lengthens the list in some formats
        contents = _read_packets(container, stream)
        if contents.num_whole < num_listed:
            raise truncated(path, f"{contents.num_whole} of the {num_listed} frames its index lists")
        declared_seconds = _declared_seconds(container, stream)
        if contents.end_seconds < declared_seconds - _DURATION_SLACK_SECONDS:
            raise truncated(
                path, f"{contents.end_seconds:.3f} of the {declared_seconds:.3f} seconds its header declares"
            )
        return _describe(path, stream, contents)


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration that stands ahead of the frames, or 0 where the format has none or it is a guess."""
    match container.format.name:
        case "matroska,webm":
            return (container.duration or 0) / av.time_base
        case "avi":
            return float(stream.frames / (stream.average_rate or 1))  # its duration is a guess from the file's size
        case _:
            return 0.0


def _read_packets(container: InputContainer, stream: VideoStream) -> _Contents:
    """Read a file from end to end, all its streams, as the declared duration is that of the longest."""
    contents = _Contents()
    stream.codec_context.thread_count = 1
    untimed = container.format.name in UNTIMED_FORMATS
    for packet in container.demux():
        tick = packet.dts if untimed or packet.pts is None else packet.pts
        if tick is not None:
            end_seconds = float((tick + (packet.duration or 0)) * packet.time_base)
            contents.end_seconds = max(contents.end_seconds, end_seconds)
        if packet.stream_index != stream.index:
            continue
        if contents.first is None:
            with suppress(InvalidDataError):  # a recording may start with packets that cannot be decoded
                contents.first = next(iter(stream.decode(packet)), None)
        if packet.size or tick is not None:  # the last, empty packet of PyAV is no frame
            contents.num_whole += not packet.is_corrupt
        if packet.size and not packet.is_discard:
            contents.ticks.append(packet.dts if untimed else packet.pts)
            contents.durations.append(packet.duration or 0)
    return contents


def _describe(path: Path, stream: VideoStream, contents: _Contents) -> VideoInfo:
    ticks = [tick for tick in contents.ticks if tick is not None]
    codec, first = stream.codec.canonical_name, contents.first
    if not contents.ticks:
        raise VideoError("NoFrames", f"{path}: got a video stream without a frame; export the video again")
    if len(ticks) < len(contents.ticks):
        raise VideoError(
            "NoTimestamps", f"{path}: {len(contents.ticks) - len(ticks)} frames have no time; remux it to MP4"
        )
    if first is None:
        raise VideoError("DecodeError", f"{path}: no frame of its {codec} stream can be decoded; re-encode it")
    order = np.argsort(ticks, kind="stable")
    pts_seconds = _seconds(np.array(ticks)[order], stream)
    last_seconds = float(_seconds(np.array([contents.durations[order[-1]]]), stream)[0])
    if not last_seconds and len(ticks) > 1:  # some muxers leave it open: it lasts as long as the one before
        last_seconds = float(pts_seconds[-1] - pts_seconds[-2])
    last_seconds = last_seconds or float(1 / (stream.guessed_rate or 25))
    rotation_degrees = round(first.rotation / 90) * 90 % 360
    sideways = rotation_degrees in (90, 270)
    return VideoInfo(
        codec=codec,
        pixel_format=first.format.name,
        width=first.height if sideways else first.width,
        height=first.width if sideways else first.height,
        rotation_degrees=rotation_degrees,
        fps=len(ticks) / (float(pts_seconds[-1]) + last_seconds - float(pts_seconds[0])),
        pts_seconds=pts_seconds,
        duration_seconds=float(pts_seconds[-1]) + last_seconds,
    )


def _seconds(ticks: Int[np.ndarray, " frames"], stream: VideoStream) -> Float64[np.ndarray, " frames"]:
    assert stream.time_base is not None  # every stream that was opened for reading has one
    return ticks * stream.time_base.numerator / stream.time_base.denominator


def has_leading_frames(path: Path) -> bool:
    """Return whether some frame is shown before a keyframe that comes ahead of it in the file.

    So it is with open groups of pictures (the default of x265) and with the B-frames of MPEG-4 part 2.
    Whoever seeks to such a keyframe and counts frames from there miscounts.

    Raises:
        VideoError: If the file cannot be read.
    """
    with opened(path) as (container, stream):
        key_tick: int | None = None
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                key_tick = packet.pts
            elif key_tick is not None and packet.pts < key_tick:
                return True
    return False
