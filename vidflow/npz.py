"""Read arrays of numbers from an `.npz` that may be damaged or hostile. Its faults raise OSError or ValueError only.

numpy's own reader is not safe here. It evaluates headers as Python, so flipped bits raise a dozen kinds of exception.
It takes arrays with damaged names for absent ones. It blocks on a pipe.
"""

import errno
import math
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from vidflow.files import open_if_regular

# The header that numpy.save writes for arrays of plain numbers.
# Source: numpy.lib.format, "Format Version 1.0".
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}(?:, ?|(?=\))))*)\),? ?\}\s*"
)
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
# A deflated byte expands to at most this many. Source: zlib's "Technical Details", Maximum Expansion Factor.
_MAX_EXPANSION = 1032
# RuntimeError: the archive is encrypted, or zipfile does not know its compression.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, RuntimeError)
# The end record of an archive: signature, two disk numbers, the number of members (twice), and more.
_END = struct.Struct("<4s4H10x")
_CHUNK_BYTES = 1 << 20


def read_npz(path: Path, is_wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Read the wanted arrays of numbers. Each is read to its end, so that its checksum is compared.

    An array that is larger than the file can hold is refused before memory is allocated. All names are checked, also
    those of arrays that are not read.

    Args:
        path: The archive.
        is_wanted: Returns whether the array with this name is read.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a regular file, not such an archive, or damaged, or an array holds anything but
            numbers.
        MemoryError: If the arrays are larger than memory.
    """
    opened = open_if_regular(path)
    if opened is None:
        raise ValueError("got a folder, pipe or device, wanted an .npz file")
    with opened as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_count(file, len(archive.infolist()))
                return _read_members(archive, is_wanted)
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # a fault of the disk; a damaged archive gives EINVAL (a seek before its start) or no errno
            raise ValueError(f"not a readable .npz ({error}); write it again with numpy.savez") from error


def _check_count(file: IO[bytes], num_members: int) -> None:
    """Compare the number of members with the one stored; a damaged length in the directory hides later members."""
    file.seek(-_END.size, os.SEEK_END)
    signature, *_, stored = _END.unpack(file.read(_END.size))
    if signature != b"PK\5\6" or stored != min(num_members, 0xFFFF):
        raise EOFError(f"{num_members} members found, but the archive's end record says {stored}")


def _read_members(archive: zipfile.ZipFile, is_wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    counts = Counter(archive.namelist())
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"holds {', '.join(twice)} more than once; write it again with numpy.savez")
    for member in archive.infolist():
        if member.file_size > _MAX_EXPANSION * member.compress_size:
            raise ValueError(
                f"{member.filename} claims {member.file_size} bytes, more than {member.compress_size} compressed bytes "
                "can hold"
            )
        # `open` compares this name with the one before the data: an array with a damaged name must not pass for absent.
        with archive.open(member) as stream:
            name = member.filename.removesuffix(".npy")
            if name != member.filename and is_wanted(name):
                arrays[name] = _read_array(stream, name, member.file_size)
    return arrays


def _read_array(stream: IO[bytes], name: str, file_size: int) -> np.ndarray:
    start = stream.read(len(_MAGIC) + 2)
    header = stream.read(int.from_bytes(start[len(_MAGIC) :], "little"))
    found = _HEADER.fullmatch(header)
    if not start.startswith(_MAGIC) or found is None:
        raise ValueError(f"`{name}` does not begin with the header that numpy.save writes for an array of numbers")
    dtype, shape = found[1].decode("latin-1"), tuple(int(part) for part in re.findall(rb"\d+", found[3]))
    if not _NUMBERS.fullmatch(dtype):
        raise ValueError(f"`{name}` holds {dtype}, wanted numbers")
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if len(start) + len(header) + num_bytes != file_size:
        raise ValueError(f"`{name}` claims the shape {shape} of {dtype}, which does not match its {file_size} bytes")
    raw = np.empty(num_bytes, np.uint8)
    _fill_array(stream, raw)
    if np.dtype(dtype).kind == "b" and raw.size and raw.max() > 1:
        raise ValueError(f"`{name}` holds values other than false and true")
    return raw.view(dtype).reshape(shape, order="F" if found[2] == b"True" else "C")


def _fill_array(stream: IO[bytes], raw: np.ndarray) -> None:
    """Fill an array from a stream, and read on to the end, where the checksum is compared."""
    num_read = 0
    while chunk := stream.read(_CHUNK_BYTES):
        raw[num_read : num_read + len(chunk)] = np.frombuffer(chunk, np.uint8)
        num_read += len(chunk)
    if num_read != raw.size:
        raise EOFError(f"{num_read} bytes of data, wanted {raw.size}")
