"""Decode exact frames by presentation time, upright and as RGB; refuse frames that damage may have affected.

Axes: H and W pixels, 3 the channels red, green, blue. A tick is one unit of a stream's time base.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from vidflow.errors import VideoError
from vidflow.records import AccessPoint, VideoInfo
from vidflow.video.ffmpeg.opening import SEEKABLE_FORMATS, UNTIMED_FORMATS, VideoPacket, demuxed, opened
from vidflow.video.ffmpeg.orientation import Orientation

# Seek to access points that are further ahead than this; read on to nearer ones.
_SEEK_SECONDS = 2.0


class _SeekMissedError(Exception):
    """A seek landed after the packet that it should reach."""


class Pictures(Protocol):
    """A function that decodes frames of one file, like `pictures`."""

    def __call__(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield `(index, frame)` for every distinct wanted frame."""


def decode(
    path: Path, info: VideoInfo, indices: Sequence[int], *, opened: Pictures | None = None
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Yield `(index, frame)` for every distinct wanted frame, in ascending order, upright and as RGB.

    Any pixel format is converted to 8 bits. See `pictures`. `opened` is the function that `probed` yielded, if the
    file is still open.
    """
    orientation = Orientation(info.rotation_degrees // 90, info.mirrored)
    for index, frame in opened(indices) if opened else pictures(path, info, indices):
        yield index, orientation.apply(frame.reformat(format="rgb24", threads=1).to_ndarray())


def pictures(path: Path, info: VideoInfo, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield `(index, frame)` for every distinct wanted frame, in ascending order, as decoded.

    Each frame equals the one that decoding from the start gives for its presentation time. Decoding starts at the
    first packet, or at an access point that the bits of the video prove. A frame is refused if the decoder reported
    an error since the access point before it, because every picture after an error may depend on the damaged one.

    Args:
        path: Video file.
        info: Result of `probe`.
        indices: Frames wanted, as positions in `info.pts_seconds`. If frames share a time, the last one is used.

    Raises:
        VideoError: `DecodeError` if a wanted frame is missing or damaged, `UnorderedTimes` if times go back, or a
            reason of `probe`.
    """
    wanted = sorted(set(indices))
    num_done = 0
    try:
        for index, frame in _decode_from_file(path, info, wanted, may_seek=True):
            yield index, frame
            num_done += 1
    except _SeekMissedError:
        yield from _decode_from_file(path, info, wanted[num_done:], may_seek=False)


def pictures_of_packets(
    path: Path, stream: VideoStream, info: VideoInfo, begun: "Begun", indices: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Do what `pictures` does, but continue a decoding that started at the first packet. Call it once."""
    wanted = sorted(set(indices))
    yield from _number_and_check(path, info, wanted, _FrameFinder(path, stream, info, begun).pick(wanted))


def use_strictly(stream: VideoStream) -> None:
    """Make a decoder that has not started report errors instead of concealing damage. It gets one thread."""
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}


class SoundDecoder:
    """Decodes packets in order, and tells which frames are sound: not affected by damage."""

    def __init__(self, stream: VideoStream, is_access: Callable[[VideoPacket], bool]) -> None:
        """Start at the next packet.

        Args:
            stream: A stream at its start that reports errors, see `use_strictly`.
            is_access: Whether decoding may start at a packet.
        """
        self._stream, self._is_access = stream, is_access
        self.is_broken = False
        """Whether an error was reported since the last access point."""
        self._sound_from: int | None = None
        self.newest_access: int | None = None
        """Tick of the last access point that was decoded."""

    def __call__(self, packet: VideoPacket) -> Iterator[tuple[VideoFrame, bool]]:
        """Decode one packet; yield the frames that come out, and whether each is sound."""
        if self._is_access(packet):
            self.newest_access = packet.pts
            if self.is_broken:
                self.is_broken, self._sound_from = False, packet.pts
        try:
            frames = self._stream.decode(packet)
        except MemoryError:  # PyAV's is an FFmpegError too, but the video may be fine
            raise
        except FFmpegError:
            frames, self.is_broken = [], True
        self.is_broken |= packet.is_corrupt or any(frame.is_corrupt for frame in frames)
        for frame in frames:
            yield frame, not self.is_broken and not self._is_before_sound(frame)

    def restart(self) -> None:
        """Reset the decoder. The next packet must be an access point."""
        self._stream.codec_context.flush_buffers()
        self.is_broken, self._sound_from = False, None

    def _is_before_sound(self, frame: VideoFrame) -> bool:
        return self._sound_from is not None and (frame.pts is None or frame.pts < self._sound_from)


def _decode_from_file(
    path: Path, info: VideoInfo, wanted: Sequence[int], *, may_seek: bool
) -> Iterator[tuple[int, VideoFrame]]:
    with opened(path) as (container, stream):
        use_strictly(stream)
        if container.format.name in UNTIMED_FORMATS:
            found = _pick_by_order(container, stream, wanted)
        else:
            seekable = container if may_seek and container.format.name in SEEKABLE_FORMATS else None
            known = {(point.pts, point.position) for point in info.access_points}
            decoder = SoundDecoder(stream, lambda packet: (packet.pts, packet.pos) in known)
            begun = Begun(decoder, demuxed(container, stream))
            found = _FrameFinder(path, stream, info, begun, seekable).pick(wanted)
        yield from _number_and_check(path, info, wanted, found)


def _number_and_check(
    path: Path, info: VideoInfo, wanted: Sequence[int], found: Iterator[tuple[VideoFrame, bool]]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames with their indices; raise an error if one is missing or not sound."""
    for index in wanted:
        frame, is_sound = next(found, (None, False))
        if frame is None or not is_sound:
            state = "is missing" if frame is None else "is damaged, or a frame that it depends on is"
            raise VideoError(
                "DecodeError",
                f"{path}: frame {index} of {len(info.pts_seconds)}, at {info.pts_seconds[index]:.3f} s, {state}; "
                "fetch the video again or re-encode it",
            )
        yield index, frame


def _pick_by_order(
    container: InputContainer, stream: VideoStream, wanted: Sequence[int]
) -> Iterator[tuple[VideoFrame, bool]]:
    decoder, remaining, count = SoundDecoder(stream, lambda _: False), set(wanted), 0
    for packet in demuxed(container, stream):
        for frame, is_sound in decoder(packet):
            if count in remaining:
                yield frame, is_sound
            count += 1


@dataclass(slots=True)
class Begun:
    """A decoding that started at the first packet.

    Attributes:
        decoder: The decoder, which knows the access points.
        packets: The packets that follow, which may be read later.
        frames: The frames decoded so far, and whether each is sound.
    """

    decoder: SoundDecoder
    packets: Iterator[VideoPacket]
    frames: list[tuple[VideoFrame, bool]] = field(default_factory=list)


class _FrameFinder:
    """Finds frames by their ticks. Skips to an access point if no frame before it is wanted."""

    def __init__(
        self,
        path: Path,
        stream: VideoStream,
        info: VideoInfo,
        begun: Begun,
        seekable: InputContainer | None = None,
    ) -> None:
        assert stream.time_base is not None
        self._path, self._stream, self._seekable = path, stream, seekable
        second = 1 / stream.time_base
        self._tick_seconds = float(stream.time_base)
        # Exact, because a double is precise enough to get the tick back from its seconds.
        self._ticks = [round(pts * second.numerator / second.denominator) for pts in info.pts_seconds.tolist()]
        self._points = info.access_points
        self._seek_ticks = round(_SEEK_SECONDS * second)
        self._decoder, self._packets, self._begun = begun.decoder, begun.packets, begun.frames

    def pick(self, wanted: Sequence[int]) -> Iterator[tuple[VideoFrame, bool]]:
        """Yield the frames at the wanted positions; stop at the first that is missing."""
        frames, position = self._decode_rest(), self._ticks[0]
        for target in (self._ticks[index] for index in wanted):
            number = bisect_right(self._points, target, key=lambda point: point.pts) - 1
            if number > 0 and self._is_ahead(point := self._points[number]):
                frames = self._skip_to(point, is_far=point.pts - position > self._seek_ticks)
            repeats = bisect_right(self._ticks, target) - bisect_left(self._ticks, target) - 1
            found = next((pair for pair in frames if pair[0].pts is not None and pair[0].pts >= target), None)
            for _ in range(repeats):
                found = next(frames, None)
            if found is None or found[0].pts != target:
                return
            position = target
            yield found

    def _is_ahead(self, point: AccessPoint) -> bool:
        return self._decoder.newest_access is None or point.pts > self._decoder.newest_access

    def _decode_rest(self) -> Iterator[tuple[VideoFrame, bool]]:
        latest: int | None = None
        begun, self._begun = self._begun, []
        for pairs in itertools.chain([begun], map(self._decoder, self._packets)):
            for frame, is_sound in pairs:
                if latest is not None and frame.pts is not None and frame.pts < latest:
                    raise unordered(self._path, latest * self._tick_seconds, frame.pts * self._tick_seconds)
                latest = frame.pts
                yield frame, is_sound

    def _skip_to(self, point: AccessPoint, *, is_far: bool) -> Iterator[tuple[VideoFrame, bool]]:
        """Skip to an access point ahead, and yield frames from there. Packets before it are not decoded."""
        sought = self._seekable if is_far else None
        if sought is not None:
            sought.seek(point.dts, stream=self._stream)
            self._packets = demuxed(sought, self._stream)
        for packet in self._packets:
            if (packet.pts, packet.pos) == (point.pts, point.position):
                self._decoder.restart()
                self._begun = []
                self._packets = itertools.chain([packet], self._packets)
                return self._decode_rest()
            if sought is not None and packet.dts is not None and packet.dts > point.dts:
                break
        raise _SeekMissedError


def unordered(source: Path | str, earlier: float, later: float) -> VideoError:
    """Return the error for a video whose frames are not in the order of their times (seconds)."""
    return VideoError(
        "UnorderedTimes",
        f"{source}: the frame after the one at {earlier:.3f} s has the time {later:.3f} s, so the times are not "
        "presentation times; remux it to MP4 with new times (`ffmpeg -fflags +genpts`) or re-encode it",
    )
