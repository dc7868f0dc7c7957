"""Probing: frame times, picture format and access points of a video, and whether the whole of it is there.

Axes: a tick is one unit of a stream's time base.
"""

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float64, Int

from vidflow.errors import VideoError
from vidflow.records import AccessPoint, VideoInfo
from vidflow.video.ffmpeg.bitstream import AccessTest
from vidflow.video.ffmpeg.decoding import (
    Begun,
    Pictures,
    SoundDecoder,
    pictures,
    pictures_of_packets,
    unordered,
    use_strictly,
)
from vidflow.video.ffmpeg.opening import TIMED_FORMATS, UNTIMED_FORMATS, VideoPacket, demuxed, opened
from vidflow.video.ffmpeg.orientation import orientation_of
from vidflow.video.ffmpeg.truncation import check_whole

# Packets kept between probing a video and decoding it.
_MOST_KEPT_BYTES = 8 << 20


@dataclass(slots=True)
class Contents:
    """What the packets of a video stream told.

    Attributes:
        num_whole: Packets that are there and whole.
        ticks: Presentation time of every frame shown, in coding order.
        durations: How long each lasts, in ticks.
        end_seconds: End of the last packet of any stream.
        first: The first frame that could be decoded.
    """

    num_whole: int = 0
    ticks: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    end_seconds: float = 0.0
    first: VideoFrame | None = None

    def check_whole(self, path: Path, container: InputContainer, stream: VideoStream, num_listed: int) -> None:
        """Refuse a file that is shorter than it says; `num_listed` packets stood in its index before it was read.

        Raises:
            VideoError: `Truncated`.
        """
        check_whole(
            path,
            container,
            stream,
            num_whole=self.num_whole,
            num_listed=num_listed,
            end_seconds=self.end_seconds,
        )


@dataclass(slots=True)
class _Access:
    """Packets at which decoding may start, by time, and whether frames behind one in the file are shown before it."""

    test: AccessTest
    packets: list[tuple[int, int, int]] = field(default_factory=list)
    known: set[tuple[int | None, int | None]] = field(default_factory=set)
    has_leading_frames: bool = False
    is_uniform: bool = True
    kept: list[VideoPacket] = field(default_factory=list)
    num_bytes: int = 0

    def is_point(self, packet: VideoPacket) -> bool:
        """Return whether decoding may start at a packet that was looked at."""
        return (packet.pts, packet.pos) in self.known

    def keep(self, packet: VideoPacket) -> None:
        """Keep a packet for decoding, while they are few."""
        self.num_bytes += packet.size
        if self.num_bytes <= _MOST_KEPT_BYTES:
            self.kept.append(packet)
        else:
            self.kept.clear()

    def look_at(self, packet: VideoPacket) -> None:
        """Take account of the next packet."""
        # A file joined from several: what stands beside the pictures changes on the way, and a jump would miss it.
        self.is_uniform &= not packet.has_sidedata("new_extradata")
        is_access = self.test(memoryview(packet))
        is_leading = bool(self.packets) and packet.pts is not None and packet.pts < self.packets[-1][0]
        self.has_leading_frames |= is_leading
        if not is_access or packet.is_discard or is_leading:
            return
        if packet.pts is not None and packet.pos is not None:
            self.packets.append((packet.pts, packet.pts if packet.dts is None else packet.dts, packet.pos))
            self.known.add((packet.pts, packet.pos))


def probe(path: Path) -> VideoInfo:
    """Read the frame times, the picture format and the access points of a video.

    All packets are read. Of MP4, MOV, Matroska, WebM and FLV only the first frame is decoded, for it alone carries
    the rotation. All frames of other containers are decoded, for their packets do not tell which frames are shown
    when. Pixels count as square, whatever the file asks for, as with the other decoders in use.

    Raises:
        VideoError: `Missing`, `NotAFile`, `Empty`, `Unreadable`, `NotAVideo`, `NoVideoStream`, `UnknownCodec`,
            `NoFrames`, `NoTimestamps`, `UnorderedTimes`, `Orientation`, `Truncated`, `Corrupt` or `DecodeError`.
    """
    with probed(path) as (info, _):
        return info


@contextmanager
def probed(path: Path) -> Iterator[tuple[VideoInfo, Pictures]]:
    """Probe a video, and decode frames of it in the same opening: of a short video opening is half of the work.

    Yields:
        What `probe` returns, and `pictures` of this file, to be called once. Where the packets are few, probing kept
        them, and it goes on with the decoding that probing began; else it opens the file anew.

    Raises:
        VideoError: As `probe`.
    """
    with opened(path) as (container, stream):
        use_strictly(stream)
        num_listed = len(stream.index_entries)  # asked before reading, which lengthens the list in some formats
        access: _Access | None = None
        if container.format.name in TIMED_FORMATS:
            access = _Access(AccessTest(stream.codec.canonical_name, stream.codec_context.extradata))
            begun = Begun(SoundDecoder(stream, access.is_point), iter(access.kept))
            contents = _read_packets(container, stream, access, begun)
        else:
            contents = _read_frames(path, container, stream)
        contents.check_whole(path, container, stream, num_listed)
        info = _describe(path, stream, contents, access)
        if access is not None and access.num_bytes <= _MOST_KEPT_BYTES:
            yield info, functools.partial(pictures_of_packets, path, stream, info, begun)
        else:
            yield info, functools.partial(pictures, path, info)


def _read_packets(container: InputContainer, stream: VideoStream, access: _Access, begun: Begun) -> Contents:
    """Read a file from end to end, all its streams, as the declared duration is that of the longest.

    Decoding begins, and stops at the first frame; a recording may start with packets that cannot be decoded.
    """
    contents = Contents()
    for packet in counted(container, stream, contents):
        if packet.size:
            access.look_at(packet)
            if not packet.is_discard:
                contents.ticks.append(packet.pts)
                contents.durations.append(packet.duration or 0)
        if begun.frames:
            access.keep(packet)
        else:
            begun.frames += begun.decoder(packet)
    contents.first = begun.frames[0][0] if begun.frames else None
    return contents


def _read_frames(path: Path, container: InputContainer, stream: VideoStream) -> Contents:
    """Read a file from end to end and decode all its frames, whose times then are those of the frames shown.

    Packets without a picture, as old AVI files end with, are none. A frame that cannot be decoded keeps its place, so
    that it is missed where it is wanted; in a container that tells frames apart by order alone it spoils the rest.
    """
    contents, coded = Contents(), dict[int, int]()
    is_untimed, decoder = container.format.name in UNTIMED_FORMATS, SoundDecoder(stream, lambda _: False)
    are_sound = True
    for packet in counted(container, stream, contents):
        if packet.size and packet.pts is not None:
            coded[packet.pts] = packet.duration or 0
        for frame, is_sound in decoder(packet):
            contents.first = contents.first or frame
            contents.ticks.append(frame.pts)
            contents.durations.append(frame.duration or 0)
            are_sound &= is_sound
    if is_untimed:
        if not are_sound or decoder.is_broken:
            raise VideoError(
                "DecodeError",
                f"{path}: decoding reports damage after {len(contents.ticks)} frames, and in this format frames are "
                "told apart by counting; fetch it again or re-encode it",
            )
        return contents
    shown = [tick for tick in contents.ticks if tick is not None]
    for earlier, later in itertools.pairwise(shown):
        if later <= earlier:
            raise unordered(path, *_seconds(np.array([earlier, later]), stream).tolist())
    lost = sorted(tick for tick in coded.keys() - set(shown) if shown and tick > shown[0])
    contents.ticks += lost
    contents.durations += [coded[tick] for tick in lost]
    return contents


def counted(container: InputContainer, stream: VideoStream, contents: Contents) -> Iterator[VideoPacket]:
    """Yield the packets of the video stream while all packets of the file are counted in."""
    untimed = container.format.name in UNTIMED_FORMATS
    tick_seconds = [float(each.time_base or 0) for each in container.streams]
    for packet in demuxed(container):
        tick = packet.dts if untimed or packet.pts is None else packet.pts
        if tick is not None:
            end_seconds = (tick + (packet.duration or 0)) * tick_seconds[packet.stream_index]
            contents.end_seconds = max(contents.end_seconds, end_seconds)
        if packet.stream_index != stream.index:
            continue
        if packet.size or tick is not None:  # the last, empty packet of PyAV is no frame
            contents.num_whole += not packet.is_corrupt
        yield packet


def _describe(path: Path, stream: VideoStream, contents: Contents, access: _Access | None) -> VideoInfo:
    ticks = [tick for tick in contents.ticks if tick is not None]
    codec, first = stream.codec.canonical_name, contents.first
    if not contents.ticks and (first is not None or not contents.num_whole):
        raise VideoError("NoFrames", f"{path}: got a video stream without a frame; export the video again")
    if first is None:
        raise VideoError("DecodeError", f"{path}: no frame of its {codec} stream can be decoded; re-encode it")
    if len(ticks) < len(contents.ticks):
        raise VideoError(
            "NoTimestamps", f"{path}: {len(contents.ticks) - len(ticks)} frames have no time; remux it to MP4"
        )
    order = np.argsort(ticks, kind="stable")
    pts_seconds = _seconds(np.array(ticks)[order], stream)
    last_seconds = float(_seconds(np.array([contents.durations[order[-1]]]), stream)[0])
    if not last_seconds and len(ticks) > 1:  # some muxers leave it open: it lasts as long as the one before
        last_seconds = float(pts_seconds[-1] - pts_seconds[-2])
    last_seconds = last_seconds or float(1 / (stream.guessed_rate or 25))
    orientation = orientation_of(first, path)
    is_sideways = orientation.quarter_turns % 2 == 1
    return VideoInfo(
        codec=codec,
        pixel_format=first.format.name,
        width=first.height if is_sideways else first.width,
        height=first.width if is_sideways else first.height,
        rotation_degrees=90 * orientation.quarter_turns,
        mirrored=orientation.mirrored,
        fps=len(ticks) / (float(pts_seconds[-1]) + last_seconds - float(pts_seconds[0])),
        pts_seconds=pts_seconds,
        duration_seconds=float(pts_seconds[-1]) + last_seconds,
        access_points=_points(access, np.array(ticks)[order]) if access and access.is_uniform else (),
        has_leading_frames=not access or access.has_leading_frames or not (access.test.is_exact and access.is_uniform),
    )


def _points(access: _Access, ticks: Int[np.ndarray, " frames"]) -> tuple[AccessPoint, ...]:
    indices = np.searchsorted(ticks, [pts for pts, _, _ in access.packets]).tolist()
    return tuple(AccessPoint(*packet, index) for packet, index in zip(access.packets, indices, strict=True))


def _seconds(ticks: Int[np.ndarray, " frames"], stream: VideoStream) -> Float64[np.ndarray, " frames"]:
    assert stream.time_base is not None  # every stream that was opened for reading has one
    return ticks * stream.time_base.numerator / stream.time_base.denominator
