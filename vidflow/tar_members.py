"""Files inside tars, read in place: their addresses, and streams over their bytes.

The address of a member is the path `TAR#OFFSET+SIZE#NAME`: where its bytes are in the tar, and its name with all but
plain characters escaped. So a name, which may come from anywhere, is never taken for a path.

    /data/00000.tar#1536+728751#cockatoo.mp4
"""

import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote_to_bytes

_ADDRESS = re.compile(r"(.+\.tar)#(\d{1,18})\+(\d{1,18})#([^/#]+)", re.DOTALL | re.IGNORECASE)
_PLAIN = " ()[],=@~"
# A header holds this many bytes of a name.
_NAME_BYTES = 100


class TarMember(NamedTuple):
    """A file inside a tar: the tar, the offset and the number of its bytes, and its name, escaped."""

    tar: Path
    offset: int
    num_bytes: int
    name: str

    @property
    def address(self) -> str:
        """The member as a path."""
        return f"{self.tar}#{self.offset}+{self.num_bytes}#{self.name}"

    @property
    def url(self) -> str:
        """The member for FFmpeg, which reads a part of a file by its protocol `subfile`."""
        return f"subfile,,start,{self.offset},end,{self.offset + self.num_bytes},,:{os.path.abspath(self.tar)}"

    def is_there(self, stream: BinaryIO) -> bool:
        """Whether the tar's header before the member's bytes still names it; `stream` is the tar."""
        stream.seek(max(0, self.offset - tarfile.BLOCKSIZE))
        try:
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return False
        name = _decode(self.name)
        # A header before it may hold the full name; this one then has its start, in some formats in ASCII.
        short = name.encode("utf-8", "surrogateescape")[:_NAME_BYTES].decode("utf-8", "surrogateescape")
        names = {name, short, name.encode("ascii", "replace")[:_NAME_BYTES].decode()}
        return header.name in names and header.size == self.num_bytes and self.offset >= tarfile.BLOCKSIZE


def make_member(tar: Path, info: tarfile.TarInfo) -> TarMember:
    """Return a member as tarfile lists it."""
    return TarMember(tar, info.offset_data, info.size, quote(info.name.encode("utf-8", "surrogateescape"), safe=_PLAIN))


def find_member(path: str | Path) -> TarMember | None:
    """Return the member that a path is the address of; None for the path of a file on the disk."""
    found = _ADDRESS.fullmatch(str(path))
    return TarMember(Path(found[1]), int(found[2]), int(found[3]), found[4]) if found else None


def short_name(path: str | Path) -> str:
    """Return the last part of the name of a file, or of the name that a member has in its tar."""
    member = find_member(path)
    return Path(_decode(member.name) if member else path).name


def _decode(name: str) -> str:
    return unquote_to_bytes(name).decode("utf-8", "surrogateescape")


def open_member(stream: BinaryIO, member: TarMember) -> BinaryIO:
    """Return a stream over a member's bytes; closing it closes `stream`, the tar."""
    return io.BufferedReader(_Window(stream, member.offset, member.num_bytes))


class _Window(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, stream: BinaryIO, offset: int, num_bytes: int) -> None:
        self._stream, self._offset, self._num_bytes, self._at = stream, offset, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = max(0, min(len(buffer), self._num_bytes - self._at))
        self._stream.seek(self._offset + self._at)
        data = self._stream.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
