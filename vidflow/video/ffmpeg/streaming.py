"""Read a file, camera or network stream of any length, at a fixed frame rate, with one frame in memory at a time.

Axes: H and W pixels, 3 the channels red, green, blue.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from vidflow.errors import VideoError
from vidflow.video.ffmpeg.decoding import SoundDecoder, unordered, use_strictly
from vidflow.video.ffmpeg.opening import UNTIMED_FORMATS, opened
from vidflow.video.ffmpeg.orientation import orientation_of
from vidflow.video.ffmpeg.probing import Contents, counted

# Protocols of network streams. `file` is not one of them, so a remote playlist cannot read local files.
_PROTOCOLS = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,crypto,httpproxy"
_SCHEMES = {"http", "https", "rtsp", "rtsps", "rtmp", "udp", "rtp", "tcp"}
# Seconds to wait for a connection, and for the next packet of one.
_TIMEOUT_SECONDS = (15.0, 15.0)
# Addresses that may be files. The clock of a file is never corrected.
_FILE_SCHEMES = ("http", "https")
# If a live clock jumps ahead by more than this, it was reset or the stream had stopped.
_LIVE_GAP_SECONDS = 5.0
# Frame times are multiples of at least a microsecond in every container; sums of doubles stray by far less.
_TOLERANCE_SECONDS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledFrame:
    """One frame of a stream.

    Attributes:
        pts_seconds: Its presentation time on the video's clock.
        pixels: Upright RGB.
        is_sampled: Whether it is on display in the middle of a period.
    """

    pts_seconds: float
    pixels: UInt8[np.ndarray, "H W 3"]
    is_sampled: bool = True


def stream_frames(
    source: str, *, fps: float, start_seconds: float | None = None, every_frame: bool = False
) -> Iterator[SampledFrame]:
    """Yield the frame on display in the middle of each period of `1 / fps` seconds.

    These are the times of `sampling.window_times`. A frame that is on display for several periods is yielded several
    times. A video shorter than half a period gives its last frame once.

    Args:
        source: Path of a video file, number of a camera such as `0`, or an `rtsp://` or `http://` address.
        fps: Frames wanted per second.
        start_seconds: Start time on the video's clock; None: the first frame.
        every_frame: Whether to yield the frames between these, too; they are not `is_sampled`.

    Raises:
        VideoError: If the source cannot be opened; `DecodeError` if a file is damaged; `NoFrames` if no frame is
            usable; or a reason of `probe`.
    """
    with _open_source(source) as (container, stream):
        num_frames = 0
        timed = _decode_timed(container, stream, source)
        for seconds, frame, is_sampled in _sample(timed, fps=fps, start_seconds=start_seconds):
            num_frames += is_sampled
            if not is_sampled and not every_frame:
                continue
            pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
            upright = orientation_of(frame, _hide_secrets(source)).apply(pixels)
            yield SampledFrame(pts_seconds=seconds, pixels=upright, is_sampled=is_sampled)
        if not num_frames:
            after = "" if start_seconds is None else f" after {start_seconds:g} s"
            raise VideoError(
                "NoFrames", f"{_hide_secrets(source)}: no frame{after} can be decoded; choose another source"
            )


@contextmanager
def _open_source(source: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file, camera or address. FFmpeg's errors become `VideoError`, also in the caller's block."""
    if _is_file(source):
        with opened(Path(source)) as both:
            yield both
        return
    try:
        with _connect(source) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.codec_context is None:
                raise VideoError("NoVideoStream", f"{_hide_secrets(source)}: no video stream that FFmpeg can decode")
            yield container, stream
    except FFmpegError as error:
        raise VideoError(
            "Unreadable",
            f"{_hide_secrets(source)}: cannot be read ({error.strerror}); check that it exists and that you may use it",
        ) from error


def _connect(source: str) -> InputContainer:
    if source.isdecimal():
        return av.open(f"/dev/video{source}", format="v4l2", timeout=_TIMEOUT_SECONDS)
    scheme = source.partition("://")[0]
    if scheme not in _SCHEMES:
        raise VideoError(
            "NotAVideo", f"{_hide_secrets(source)}: scheme {scheme!r}; wanted one of {', '.join(sorted(_SCHEMES))}"
        )
    options = {"protocol_whitelist": _PROTOCOLS}
    if scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # over UDP, lost packets would damage frames
    return av.open(source, options=options, timeout=_TIMEOUT_SECONDS)


def _is_file(source: str) -> bool:
    return not source.isdecimal() and "://" not in source


def _is_live(source: str) -> bool:
    return source.isdecimal() or ("://" in source and source.partition("://")[0] not in _FILE_SCHEMES)


def _hide_secrets(source: str) -> str:
    """Return a source as messages may show it: without user name, password and query."""
    scheme, mark, rest = source.partition("://")
    if not mark:
        return f"/dev/video{source}" if source.isdecimal() else source
    return f"{scheme}://{re.split('[?#]', rest.rpartition('@')[2])[0]}"


def _decode_timed(
    container: InputContainer, stream: VideoStream, source: str
) -> Iterator[tuple[float, float, VideoFrame]]:
    """Yield start (seconds), end (seconds) and picture of every decoded frame, on a clock that never goes back.

    A live stream may reset its clock or lose packets. Frames damaged by a loss are left out, up to the next keyframe.

    Raises:
        VideoError: `DecodeError`, `UnorderedTimes`, `NoTimestamps` or `Truncated`, for files only.
    """
    is_live, untimed = _is_live(source), container.format.name in UNTIMED_FORMATS
    spacing, following, shift = float(1 / (stream.guessed_rate or 25)), 0.0, 0.0
    latest: float | None = None
    contents, num_listed = Contents(), len(stream.index_entries)
    use_strictly(stream)
    decoder = SoundDecoder(stream, lambda packet: packet.is_keyframe)
    for frame, is_sound in (pair for packet in counted(container, stream, contents) for pair in decoder(packet)):
        if not is_sound:
            if is_live or latest is None:  # a recording may start in the middle of a group of pictures
                continue
            raise _damage_error(source, following)
        seconds = following if untimed or frame.time is None else frame.time + shift
        if latest is not None and is_live and (seconds < latest or seconds > following + _LIVE_GAP_SECONDS):
            shift += following - seconds  # a camera that reconnects resets its clock
            seconds = following
        if not is_live and not untimed:
            _check_time(source, frame, latest)
        lasting = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else spacing
        latest, following = seconds, seconds + lasting
        yield seconds, following, frame
    if decoder.is_broken and not is_live and latest is not None:
        raise _damage_error(source, following)
    if _is_file(source):
        contents.check_whole(Path(source), container, stream, num_listed)


def _check_time(source: str, frame: VideoFrame, latest: float | None) -> None:
    """Refuse a file whose frames have no times, or times that go back."""
    if frame.time is None:
        raise VideoError("NoTimestamps", f"{_hide_secrets(source)}: its frames have no time; remux it to MP4")
    if latest is not None and frame.time < latest:
        raise unordered(_hide_secrets(source), latest, frame.time)


def _damage_error(source: str, seconds: float) -> VideoError:
    return VideoError(
        "DecodeError", f"{_hide_secrets(source)}: damaged after {seconds:.3f} s; fetch the video again or re-encode it"
    )


def _sample(
    timed: Iterator[tuple[float, float, VideoFrame]], *, fps: float, start_seconds: float | None
) -> Iterator[tuple[float, VideoFrame, bool]]:
    """Yield time and picture of the frame on display at `start + (i + 0.5) / fps`, for every i, as sampled.

    The frames from `start` on that are not on display at such a time are yielded once, as not sampled.
    """
    held: tuple[float, float, VideoFrame] | None = None
    start, count = start_seconds, 0
    for now in timed:
        start = now[0] if start is None else start
        if held is not None and now[0] > start:
            due = _count_due(now[0], start, count, fps)
            yield from [(held[0], held[2], due > 0)] * max(1, due)
            count += due
        held = now
    if held is None or start is None or held[1] <= start:
        return
    due = _count_due(held[1] - _TOLERANCE_SECONDS, start, count, fps)
    is_sampled = due > 0 or not count
    yield from [(held[0], held[2], is_sampled)] * max(1, due)


def _count_due(seconds: float, start: float, count: int, fps: float) -> int:
    """Return how many sampling times, from number `count` on, are before `seconds`."""
    num_passed = int(np.ceil((seconds - _TOLERANCE_SECONDS - start) * fps - 0.5))
    return max(0, num_passed - count)


__all__ = ["SampledFrame", "stream_frames"]
