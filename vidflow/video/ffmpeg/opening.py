"""Open video files. FFmpeg's errors become a `VideoError` that says why.

Axes: a tick is one unit of a stream's time base.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from vidflow.errors import VideoError
from vidflow.files import open_regular, size_of
from vidflow.tar_members import find_member

VideoPacket: TypeAlias = "Packet[VideoStream]"

UNTIMED_FORMATS = {"avi"}
"""AVI stores decoding times only. Its frames are identified by their order, never by their time."""
SEEKABLE_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Their packets have the same times after a seek as in a read from the start."""
TIMED_FORMATS = SEEKABLE_FORMATS | {"flv"}
"""Their packets give the presentation time of every frame. In other formats all frames are decoded to get the times."""

# Demuxers of formats that hold all pictures in one file. Playlists and lists of parts (hls, dash, concat, sdp, imf,
# ...) would open other files than the one that the manifest names.
_DEMUXERS = ",".join(
    (
        *("mov", "matroska", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "asf", "ogg", "gif"),
        *("nut", "mxf", "ivf", "yuv4mpegpipe", "dv", "rm", "apng", "srt", "wav", "mp3", "aac"),
    )
)

# First bytes of formats that FFmpeg can read. If opening such a file fails, it is damaged, not another kind of file.
_BOX_TYPES = {b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"}
_SIGNATURES = (b"\x1a\x45\xdf\xa3", b"GIF8", b"OggS", b"FLV\x01")


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the best video stream of a file. FFmpeg's errors become `VideoError`, also in the caller's block."""
    _check_file(path)
    try:
        member = find_member(path)
        protocols = "file,subfile" if member else "file"
        options = {"protocol_whitelist": protocols, "format_whitelist": _DEMUXERS}
        name = member.url if member else os.path.abspath(path)
        container = av.open(name, options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise _explain_refusal(path, error) from error
    with container:
        stream = container.streams.best("video")
        if not container.streams:
            raise VideoError(
                "NoFrames", f"{path}: got a {container.format.name} file without any stream; export it again"
            )
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            kinds = sorted({stream.type for stream in container.streams})
            raise VideoError("NoVideoStream", f"{path}: got streams of {', '.join(kinds)}; wanted a video stream")
        if stream.codec_context is None:
            raise VideoError("UnknownCodec", f"{path}: FFmpeg has no decoder for its video stream; re-encode it")
        try:
            yield container, stream
        except MemoryError:  # PyAV's is an FFmpegError too, but the file may be fine
            raise
        except FFmpegError as error:
            raise VideoError(
                "Corrupt", f"{path}: reading failed ({error.strerror}); fetch it again or re-encode it"
            ) from error


def demuxed(container: InputContainer, stream: VideoStream | None = None) -> Iterator[VideoPacket]:
    """Yield the packets of one stream or of all streams. The last ones are empty.

    Raises:
        VideoError: `Corrupt` if damage makes a new stream appear.
    """
    packets: Iterator[Any] = container.demux() if stream is None else container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError as error:  # PyAV looks for the new stream among those at opening
            raise VideoError(
                "Corrupt", f"{container.name}: a new stream appears in the middle; fetch it again or re-encode it"
            ) from error
        if packet is None:
            return
        yield packet


def _check_file(path: Path) -> None:
    with open_regular(path) as file:
        if not size_of(file):
            raise VideoError("Empty", f"{path}: got 0 bytes, wanted a video; fetch it again")


def _explain_refusal(path: Path, error: FFmpegError) -> VideoError:
    """Return the error that says why FFmpeg did not open a file."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and not isinstance(error, EOFError):
        return VideoError(
            "Unreadable", f"{path}: cannot be read ({error.strerror}); check its permissions and its disk"
        )
    with open_regular(path) as file:
        start = file.read(12)
    is_avi = start.startswith(b"RIFF") and start[8:] == b"AVI "  # some images and sounds are RIFF too
    if start[4:8] in _BOX_TYPES or start.startswith(_SIGNATURES) or is_avi:
        return VideoError(
            "Truncated",
            f"{path}: got the start of a video without a usable index or header; the file was cut off: fetch it again",
        )
    return VideoError(
        "NotAVideo", f"{path}: got a file that is not a video ({error.strerror}); wanted MP4, WebM, AVI or the like"
    )
