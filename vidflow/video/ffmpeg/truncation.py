"""Check that a file is complete, by the lengths that it declares."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from vidflow.errors import VideoError
from vidflow.files import open_regular, size_of

# Containers that store the duration before the frames. In a complete file it may differ by the slack.
_DECLARING = {"matroska,webm", "flv", "asf", "mxf"}
_DURATION_SLACK_SECONDS = 0.5

# Top-level boxes of an MP4 or MOV file (ISO/IEC 14496-12). Anything else is not a box.
_BOXES = {
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"meta", b"uuid", b"free", b"skip"),
    *(b"wide", b"udta", b"emsg", b"prft", b"pdin"),
}
# The GUID of ASF's file properties object, which states the size of the file 24 bytes after its start.
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER_BYTES = 1 << 16


def check_whole(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    *,
    num_whole: int,
    num_listed: int,
    end_seconds: float,
) -> None:
    """Compare the contents of a file with what it declares.

    Args:
        path: The file.
        container: The file, opened.
        stream: Its video stream.
        num_whole: Number of complete packets of the stream.
        num_listed: Number of packets that the file's index lists; 0 if it has none.
        end_seconds: End of the last packet of any stream.

    Raises:
        VideoError: `Truncated` if something is missing.
    """
    if num_whole < num_listed:
        raise truncated(path, f"{num_whole} of the {num_listed} frames its index lists")
    declared_seconds = _read_declared_seconds(container, stream)
    if end_seconds < declared_seconds - _DURATION_SLACK_SECONDS:
        raise truncated(path, f"{end_seconds:.3f} of the {declared_seconds:.3f} seconds its header declares")
    with open_regular(path) as file:
        num_bytes = size_of(file)
        declared_bytes = max(_read_declared_bytes(container.format.name, file), default=0)
    if num_bytes < declared_bytes:
        raise truncated(path, f"{num_bytes} of the {declared_bytes} bytes it declares")


def truncated(path: Path, got: str) -> VideoError:
    """Return the error for an incomplete file; `got` says what is there and what is declared."""
    return VideoError("Truncated", f"{path}: got {got}; the file was cut off: fetch it again")


def _read_declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration that is stored before the frames; 0 if the format has none or it is a guess."""
    if container.format.name in _DECLARING:
        return (container.duration or 0) / av.time_base
    if container.format.name == "avi":
        return float(stream.frames / (stream.average_rate or 1))  # its duration is a guess from the file's size
    return 0.0


def _read_declared_bytes(format_name: str, file: BinaryIO) -> Iterator[int]:
    """Yield the file size that each declared length requires."""
    if format_name.startswith("mov,"):
        yield from _read_box_ends(file)
    elif format_name == "asf":
        header = file.read(_ASF_HEADER_BYTES)
        found = header.find(_ASF_PROPERTIES)
        if 0 <= found <= len(header) - 104:
            (flags,) = struct.unpack_from("<I", header, found + 88)
            if not flags & 1:  # a broadcast does not know its length
                yield struct.unpack_from("<Q", header, found + 40)[0]


def _read_box_ends(file: BinaryIO) -> Iterator[int]:
    """Yield the end of each top-level box, and of the data that each segment index (`sidx`) covers."""
    start = 0
    while True:
        file.seek(start)
        header = file.read(16)
        if len(header) < 8 or header[4:8] not in _BOXES:
            return
        size, header_bytes = int.from_bytes(header[:4], "big"), 8
        if size == 1 and len(header) == 16:
            size, header_bytes = int.from_bytes(header[8:], "big"), 16
        if size < header_bytes:  # 0 means up to the end of the file
            return
        if header[4:8] == b"sidx":
            file.seek(start + header_bytes)
            yield start + size + _count_indexed_bytes(file.read(size - header_bytes))
        start += size
        yield start


def _count_indexed_bytes(body: bytes) -> int:
    """Return how many bytes after itself a segment index covers (ISO/IEC 14496-12, section 8.16.3)."""
    is_wide = body[:1] == b"\1"
    offset, entries = (slice(20, 28), 32) if is_wide else (slice(16, 20), 24)
    count = int.from_bytes(body[entries - 2 : entries], "big")
    starts = range(entries, entries + 12 * count, 12)
    sizes = [int.from_bytes(body[start : start + 4], "big") & 0x7FFFFFFF for start in starts]
    return int.from_bytes(body[offset], "big") + sum(sizes)
