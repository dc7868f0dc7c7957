"""Opening a video file: what FFmpeg refuses becomes a `VideoError` that says why.

Axes: a tick is one unit of a stream's time base.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from vidflow.errors import VideoError

UNTIMED_FORMATS = {"avi"}
"""AVI stores decoding times only: its frames are told apart by their order, never by their time."""

# How a file starts that FFmpeg ought to be able to read: what fails after these is damaged, not foreign.
_BOX_TYPES = {b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"}
_SIGNATURES = (b"RIFF", b"\x1a\x45\xdf\xa3", b"GIF8", b"OggS", b"FLV\x01")


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the best video stream of a file; FFmpeg's errors become ours, here and in the caller's block."""
    _check_file(path)
    try:
        # Files only: a playlist that is named like a video must not reach for the network.
        container = av.open(os.path.abspath(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FFmpegError as error:
        raise _refusal(path, error) from error
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
        except MemoryError:  # FFmpeg's is both; it says nothing of the file
            raise
        except FFmpegError as error:
            raise VideoError(
                "Corrupt", f"{path}: reading failed ({error.strerror}); fetch it again or re-encode it"
            ) from error


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(
            "Missing", f"{path}: no such file; correct the path or remove the row from the manifest"
        ) from error
    except OSError as error:
        raise VideoError(
            "Unreadable", f"{path}: cannot be reached ({error.strerror}); check its permissions"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("NotAFile", f"{path}: got a folder or device, wanted a video file; correct the path")
    if not status.st_size:
        raise VideoError("Empty", f"{path}: got 0 bytes, wanted a video; fetch it again")


def _refusal(path: Path, error: FFmpegError) -> VideoError:
    """Say why FFmpeg would not open a file."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and not isinstance(error, EOFError):
        return VideoError(
            "Unreadable", f"{path}: cannot be read ({error.strerror}); check its permissions and its disk"
        )
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] in _BOX_TYPES or start.startswith(_SIGNATURES):
        return truncated(path, "the start of a video without a usable index or header")
    return VideoError(
        "NotAVideo", f"{path}: got something that is no video ({error.strerror}); wanted MP4, WebM, AVI or the like"
    )


def truncated(path: Path, got: str) -> VideoError:
    """Return the error of a file whose rest is missing; `got` says what is there and what ought to be."""
    return VideoError("Truncated", f"{path}: got {got}; the file was cut off: fetch it again")
