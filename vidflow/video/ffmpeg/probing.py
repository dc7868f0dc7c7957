"""Probe videos: frame times, pixel format and access points, and whether the file is complete.

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

# Size of the packets kept in memory between probing a video and decoding it.
_MAX_KEPT_BYTES = 8 << 20


@dataclass(slots=True)
class Contents:
    """Facts from the packets of a video stream.

    Attributes:
        num_whole: Number of packets that are complete.
        ticks: Presentation time of every frame shown, in coding order.
        durations: Duration of each, in ticks.
        end_seconds: End of the last packet of any stream.
        first: The first frame that could be decoded.
    """

    num_whole: int = 0
    ticks: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    end_seconds: float = 0.0
    first: VideoFrame | None = None

    def check_whole(self, path: Path, container: InputContainer, stream: VideoStream, num_listed: int) -> None:
        """Refuse a file that is shorter than it declares; `num_listed` is the length of its index before reading.

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
    """Packets at which decoding may start, and whether frames after one in the file are shown before it."""

    test: AccessTest
    packets: list[tuple[int, int, int]] = field(default_factory=list)
    known: set[tuple[int | None, int | None]] = field(default_factory=set)
    has_leading_frames: bool = False
    is_uniform: bool = True
    kept: list[VideoPacket] = field(default_factory=list)
    num_bytes: int = 0

    def is_point(self, packet: VideoPacket) -> bool:
        """Return whether decoding may start at a packet that `look_at` has seen; in a joined file at none."""
        return self.is_uniform and (packet.pts, packet.pos) in self.known

    def keep(self, packet: VideoPacket) -> None:
        """Keep a packet for decoding; drop all packets if they become too large."""
        self.num_bytes += packet.size
        if self.num_bytes <= _MAX_KEPT_BYTES:
            self.kept.append(packet)
        else:
            self.kept.clear()

    def look_at(self, packet: VideoPacket) -> None:
        """Record the next packet."""
        # In a file joined from several, the codec configuration changes on the way, and a seek would miss that.
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

    All packets are read. In MP4, MOV, Matroska, WebM and FLV only the first frame is decoded, because only a decoded
    frame carries the rotation. In other containers all frames are decoded, because the packets do not tell when
    frames are shown. Pixels count as square, even if the file declares otherwise, as in other decoders.

    Raises:
        VideoError: `Missing`, `NotAFile`, `Empty`, `Unreadable`, `NotAVideo`, `NoVideoStream`, `UnknownCodec`,
            `NoFrames`, `NoTimestamps`, `UnorderedTimes`, `Orientation`, `Truncated`, `Corrupt` or `DecodeError`.
    """
    with probed(path) as (info, _):
        return info


@contextmanager
def probed(path: Path) -> Iterator[tuple[VideoInfo, Pictures]]:
    """Probe a video and let the caller decode it without opening it again: opening is half the work for a short video.

    Yields:
        The result of `probe`, and a function like `pictures` for this file, to be called once. If the packets are few,
        probing kept them, and the function continues the decoding that probing started. Otherwise it opens the file
        again.

    Raises:
        VideoError: As for `probe`.
    """
    with opened(path) as (container, stream):
        use_strictly(stream)
        num_listed = len(stream.index_entries)  # before reading, which lengthens the list in some formats
        access: _Access | None = None
        if container.format.name in TIMED_FORMATS:
            access = _Access(AccessTest(stream.codec.canonical_name, stream.codec_context.extradata))
            begun = Begun(SoundDecoder(stream, access.is_point), iter(access.kept))
            contents = _read_packets(container, stream, access, begun)
        else:
            contents = _read_frames(path, container, stream)
        contents.check_whole(path, container, stream, num_listed)
        info = _describe(path, stream, contents, access)
        if access is not None and access.num_bytes <= _MAX_KEPT_BYTES:
            yield info, functools.partial(pictures_of_packets, path, stream, info, begun)
        else:
            yield info, functools.partial(pictures, path, info)


def _read_packets(container: InputContainer, stream: VideoStream, access: _Access, begun: Begun) -> Contents:
    """Read all packets of all streams, because the declared duration is that of the longest stream.

    Decode up to the first frame that comes out; a recording may start with packets that cannot be decoded.
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
    """Read all packets and decode all frames, to get the times at which frames are shown.

    Packets without a picture, as at the end of old AVI files, do not count. A frame that cannot be decoded keeps its
    time, so only clips that want it fail. In a container without times it shifts all later frames, so that is refused.
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
                "identified by counting; fetch it again or re-encode it",
            )
        return contents
    shown = [tick for tick in contents.ticks if tick is not None]
    for earlier, later in itertools.pairwise(shown):
        if later <= earlier:
            raise unordered(path, *_to_seconds(np.array([earlier, later]), stream).tolist())
    lost = sorted(tick for tick in coded.keys() - set(shown) if shown and tick > shown[0])
    contents.ticks += lost
    contents.durations += [coded[tick] for tick in lost]
    return contents


def counted(container: InputContainer, stream: VideoStream, contents: Contents) -> Iterator[VideoPacket]:
    """Yield the packets of the video stream, and record the packets of all streams in `contents`."""
    untimed = container.format.name in UNTIMED_FORMATS
    tick_seconds = [float(each.time_base or 0) for each in container.streams]
    for packet in demuxed(container):
        tick = packet.dts if untimed or packet.pts is None else packet.pts
        if tick is not None:
            end_seconds = (tick + (packet.duration or 0)) * tick_seconds[packet.stream_index]
            contents.end_seconds = max(contents.end_seconds, end_seconds)
        if packet.stream_index != stream.index:
            continue
        if packet.size or tick is not None:  # PyAV's last packet is empty and holds no frame
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
    pts_seconds = _to_seconds(np.array(ticks)[order], stream)
    last_seconds = float(_to_seconds(np.array([contents.durations[order[-1]]]), stream)[0])
    if not last_seconds and len(ticks) > 1:  # some muxers omit it: use the duration of the frame before
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
        access_points=_make_access_points(access, np.array(ticks)[order]) if access and access.is_uniform else (),
        has_leading_frames=not access or access.has_leading_frames or not (access.test.is_exact and access.is_uniform),
    )


def _make_access_points(access: _Access, ticks: Int[np.ndarray, " frames"]) -> tuple[AccessPoint, ...]:
    indices = np.searchsorted(ticks, [pts for pts, _, _ in access.packets]).tolist()
    return tuple(AccessPoint(*packet, index) for packet, index in zip(access.packets, indices, strict=True))


def _to_seconds(ticks: Int[np.ndarray, " frames"], stream: VideoStream) -> Float64[np.ndarray, " frames"]:
    assert stream.time_base is not None  # every stream that was opened for reading has one
    return ticks * stream.time_base.numerator / stream.time_base.denominator
