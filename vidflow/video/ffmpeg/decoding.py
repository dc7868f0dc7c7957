"""Decoding frames exactly: found by presentation time, upright, as RGB, and none that damage may have touched.

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

# Access points further ahead than this are reached by seeking, nearer ones by reading on.
_SEEK_SECONDS = 2.0


class _SeekMissedError(Exception):
    """A seek did not land at or before the packet it was meant for."""


class Pictures(Protocol):
    """Decodes frames of one file, as `pictures` does."""

    def __call__(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield `(index, frame)` for every distinct wanted frame."""


def decode(
    path: Path, info: VideoInfo, indices: Sequence[int], *, opened: Pictures | None = None
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Yield `(index, frame)` for every distinct wanted frame, in ascending order, upright and as RGB.

    Any pixel format is converted to 8 bits. See `pictures`; `opened` is what `probed` gave, if the file is still open.
    """
    orientation = Orientation(info.rotation_degrees // 90, info.mirrored)
    for index, frame in opened(indices) if opened else pictures(path, info, indices):
        yield index, orientation.apply(frame.reformat(format="rgb24", threads=1).to_ndarray())


def pictures(path: Path, info: VideoInfo, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield `(index, frame)` for every distinct wanted frame, in ascending order, as the decoder gives it.

    A frame is the one that decoding from the start gives for its presentation time. Decoding starts at the first
    packet, or at an access point that the bits of the video prove. A frame is refused if the decoder has reported an
    error since the access point before it, as everything after an error may lean on it.

    Args:
        path: Video file.
        info: What `probe` said of it.
        indices: Frames wanted, as positions in `info.pts_seconds`. Of frames with one time the last one answers.

    Raises:
        VideoError: `DecodeError` if a wanted frame is missing or damaged, `UnorderedTimes` if times go back, or a
            reason of `probe`.
    """
    wanted = sorted(set(indices))
    num_done = 0
    try:
        for index, frame in _pictures(path, info, wanted, may_seek=True):
            yield index, frame
            num_done += 1
    except _SeekMissedError:
        yield from _pictures(path, info, wanted[num_done:], may_seek=False)


def pictures_of_packets(
    path: Path, stream: VideoStream, info: VideoInfo, begun: "Begun", indices: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Do what `pictures` does by going on with a decoding from the start; once."""
    wanted = sorted(set(indices))
    yield from _checked(path, info, wanted, _ByTime(path, stream, info, begun).pick(wanted))


def use_strictly(stream: VideoStream) -> None:
    """Let a decoder that has not begun report errors; it would paint over them. One thread, as workers are many."""
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}


class SoundDecoder:
    """Decodes packets one after the other and tells frames that damage may have touched from sound ones."""

    def __init__(self, stream: VideoStream, is_access: Callable[[VideoPacket], bool]) -> None:
        """Start with the next packet.

        Args:
            stream: A stream that reports errors, see `use_strictly`, at its start.
            is_access: Whether decoding may start at a packet.
        """
        self._stream, self._is_access = stream, is_access
        self.is_broken = False
        """Whether an error was reported since the last access point."""
        self._sound_from: int | None = None
        self.newest_access: int | None = None
        """Tick of the last access point that was decoded."""

    def __call__(self, packet: VideoPacket) -> Iterator[tuple[VideoFrame, bool]]:
        """Decode one packet; yield the frames that came out, and whether each is sound."""
        if self._is_access(packet):
            self.newest_access = packet.pts
            if self.is_broken:
                self.is_broken, self._sound_from = False, packet.pts
        try:
            frames = self._stream.decode(packet)
        except MemoryError:  # FFmpeg's is both; it says nothing of the video
            raise
        except FFmpegError:
            frames, self.is_broken = [], True
        self.is_broken |= packet.is_corrupt or any(frame.is_corrupt for frame in frames)
        for frame in frames:
            yield frame, not self.is_broken and not self._is_before_sound(frame)

    def restart(self) -> None:
        """Forget everything, as the next packet is an access point."""
        self._stream.codec_context.flush_buffers()
        self.is_broken, self._sound_from = False, None

    def _is_before_sound(self, frame: VideoFrame) -> bool:
        return self._sound_from is not None and (frame.pts is None or frame.pts < self._sound_from)


def _pictures(
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
            found = _ByTime(path, stream, info, begun, seekable).pick(wanted)
        yield from _checked(path, info, wanted, found)


def _checked(
    path: Path, info: VideoInfo, wanted: Sequence[int], found: Iterator[tuple[VideoFrame, bool]]
) -> Iterator[tuple[int, VideoFrame]]:
    """Number the frames found, and refuse where one is missing or not sound."""
    for index in wanted:
        frame, is_sound = next(found, (None, False))
        if frame is None or not is_sound:
            state = "is missing" if frame is None else "is damaged, or what it was coded from"
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
    """A decoding from the first packet on.

    Attributes:
        decoder: The decoder, which knows the access points.
        packets: Those to come, or all of them once they have been read.
        frames: The frames that came out so far, and whether each is sound.
    """

    decoder: SoundDecoder
    packets: Iterator[VideoPacket]
    frames: list[tuple[VideoFrame, bool]] = field(default_factory=list)


class _ByTime:
    """Finds frames by their ticks, and leaves out what lies between two access points where nothing is wanted."""

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
        # Exact, as a double holds any tick that was divided into seconds.
        self._ticks = [round(pts * second.numerator / second.denominator) for pts in info.pts_seconds.tolist()]
        self._points = info.access_points
        self._seek_ticks = round(_SEEK_SECONDS * second)
        self._decoder, self._packets, self._begun = begun.decoder, begun.packets, begun.frames

    def pick(self, wanted: Sequence[int]) -> Iterator[tuple[VideoFrame, bool]]:
        """Yield the frames at wanted positions of the ticks; end where one is not there."""
        frames, position = self._frames(), self._ticks[0]
        for target in (self._ticks[index] for index in wanted):
            number = bisect_right(self._points, target, key=lambda point: point.pts) - 1
            if number > 0 and self._is_ahead(point := self._points[number]):
                frames = self._frames_from(point, is_far=point.pts - position > self._seek_ticks)
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

    def _frames(self) -> Iterator[tuple[VideoFrame, bool]]:
        latest: int | None = None
        begun, self._begun = self._begun, []
        for pairs in itertools.chain([begun], map(self._decoder, self._packets)):
            for frame, is_sound in pairs:
                if latest is not None and frame.pts is not None and frame.pts < latest:
                    raise unordered(self._path, latest * self._tick_seconds, frame.pts * self._tick_seconds)
                latest = frame.pts
                yield frame, is_sound

    def _frames_from(self, point: AccessPoint, *, is_far: bool) -> Iterator[tuple[VideoFrame, bool]]:
        """Go to an access point ahead; what lies before it is read, but not decoded."""
        sought = self._seekable if is_far else None
        if sought is not None:
            sought.seek(point.dts, stream=self._stream)
            self._packets = demuxed(sought, self._stream)
        for packet in self._packets:
            if (packet.pts, packet.pos) == (point.pts, point.position):
                self._decoder.restart()
                self._begun = []
                self._packets = itertools.chain([packet], self._packets)
                return self._frames()
            if sought is not None and packet.dts is not None and packet.dts > point.dts:
                break
        raise _SeekMissedError


def unordered(source: Path | str, earlier: float, later: float) -> VideoError:
    """Return the error of a video whose frames come out in another order than their times (seconds)."""
    return VideoError(
        "UnorderedTimes",
        f"{source}: the frame after that at {earlier:.3f} s has time {later:.3f} s, so its times are not those of "
        "presentation; remux it to MP4 with new times (`ffmpeg -fflags +genpts`) or re-encode it",
    )
