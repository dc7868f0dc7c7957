"""Functions that the sandbox calls on one file of a manifest. The child imports this module instead of the stages."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidflow.errors import VideoError
from vidflow.files import file_state, open_regular, size_of, unreadable
from vidflow.records import VideoInfo
from vidflow.video.encode import EncodedClip, encode_clip
from vidflow.video.ffmpeg import probe

_BLOCK_BYTES = 1 << 20
# Share of the allowed time for hashing. The rest is for probing, and for reporting before the sandbox stops us.
_HASHING_SHARE = 0.8


def scan_file(path: Path, timeout_seconds: float, *, is_video: bool) -> tuple[str, VideoInfo | None]:
    """Hash a file, and probe it if it is a video.

    Args:
        path: The file.
        timeout_seconds: Time that the sandbox allows for both.
        is_video: Whether its row names it as the video; dense ground truth is only hashed.

    Raises:
        VideoError: `Missing`, `NotAFile`, `Unreadable`, `Timeout`, or a reason of `probe`.
    """
    sha256 = digest_within(path, timeout_seconds)
    return sha256, probe(path) if is_video else None


def digest_within(path: Path, timeout_seconds: float) -> str:
    """Return the sha256 of a regular file.

    Raises:
        VideoError: `Timeout` if it takes most of the allowed time (the message says how much time is enough), or a
            reason of `open_regular`.
    """
    started = time.monotonic()
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    with open_regular(path) as file:
        num_bytes, num_read = size_of(file), 0
        try:
            while count := file.readinto(block):  # type: ignore[attr-defined]
                digest.update(memoryview(block)[:count])
                num_read += count
                seconds = time.monotonic() - started
                if seconds > _HASHING_SHARE * timeout_seconds and num_read < num_bytes:
                    wanted = math.ceil(seconds * num_bytes / num_read / _HASHING_SHARE * 1.5)
                    raise VideoError(
                        "Timeout",
                        f"{path}: only {num_read / 1e6:.1f} of its {num_bytes / 1e6:.1f} MB could be hashed in "
                        f"{seconds:.1f} of {timeout_seconds:g} s; set resources.decode_timeout_seconds to {wanted} "
                        "or leave the file out",
                    )
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()


def encode_unchanged(
    path: Path, times: Sequence[float], *, stamps: Mapping[str, tuple[int, int]], annotations: str, **encoding: Any
) -> EncodedClip:
    """Make a clip, and check that its files have not changed since the scan, whose digests the clip carries.

    Args:
        path: The video.
        times: As for `encode_clip`.
        stamps: Size and modification time, at the scan, of every file that the clip is made from.
        annotations: As for `encode_clip`.
        encoding: Further arguments of `encode_clip`.

    Raises:
        VideoError: `Changed` or `Unreadable`, or a reason of `encode_clip`.
    """
    check_unchanged(stamps)
    encoded = encode_clip(path, times, annotations=annotations, **encoding)
    check_unchanged(stamps)
    return encoded


def check_unchanged(stamps: Mapping[str, tuple[int, int]]) -> None:
    """Check that files have not changed since they were scanned.

    Raises:
        VideoError: `Changed` if one has.
    """
    for name, stamp in stamps.items():
        if file_state(name).stamp != stamp:
            raise VideoError("Changed", f"{name}: gone or changed since it was scanned; the next run scans it again")
