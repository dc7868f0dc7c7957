"""Scanning: the content hash and the headers of every video, remembered by path, size and time of change."""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidflow.errors import DamagedError, VideoError
from vidflow.records import VideoInfo
from vidflow.store.layout import file_sha256
from vidflow.store.rows import read_rows, write_rows
from vidflow.video.ffmpeg import probe
from vidflow.video.sandbox import Sandbox

ANNOTATIONS_SUFFIX = ".npz"
"""Dense ground truth is hashed like a video, and not probed."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedVideo:
    """What is known of one file; `reason` and `message` say why it is unusable, and are empty otherwise.

    Attributes:
        path: The file.
        num_bytes: Its size, -1 where it could not be read.
        modified_ns: Its time of change in nanoseconds.
        sha256: Digest of its bytes.
        codec: FFmpeg's codec name.
        fps: Mean frame rate.
        num_frames: Frames in it.
        start_seconds: Time of the first frame.
        end_seconds: End of the last frame.
        reason: Short class of the problem.
        message: One sentence about it.
    """

    path: str
    num_bytes: int
    modified_ns: int
    sha256: str = ""
    codec: str = ""
    fps: float = 0.0
    num_frames: int = 0
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    reason: str = ""
    message: str = ""


class VideoScanner:
    """Hashes and probes videos; probing runs where it can be killed."""

    def __init__(self, *, timeout_seconds: float, memory_mib: int) -> None:
        """Start no process yet; the first probe does."""
        self._sandbox = Sandbox(timeout_seconds=timeout_seconds, memory_mib=memory_mib)

    def __call__(self, paths: Sequence[str]) -> list[ScannedVideo]:
        """Return one row per path, in order; a broken video is a row with a reason."""
        return [self._scan(path) for path in paths]

    def _scan(self, path: str) -> ScannedVideo:
        num_bytes, modified_ns = file_stamp(path)
        if path.endswith(ANNOTATIONS_SUFFIX) and num_bytes >= 0:
            digest = file_sha256(Path(path))
            return ScannedVideo(path=path, num_bytes=num_bytes, modified_ns=modified_ns, sha256=digest)
        try:
            info: VideoInfo = self._sandbox.call(probe, Path(path))
        except VideoError as error:
            return ScannedVideo(
                path=path, num_bytes=num_bytes, modified_ns=modified_ns, reason=error.reason, message=str(error)
            )
        return ScannedVideo(
            path=path,
            num_bytes=num_bytes,
            modified_ns=modified_ns,
            sha256=file_sha256(Path(path)),
            codec=info.codec,
            fps=info.fps,
            num_frames=len(info.pts_seconds),
            start_seconds=float(info.pts_seconds[0]),
            end_seconds=info.duration_seconds,
        )


class VideoIndex:
    """All scans ever made under one root, as Parquet parts; a file that changed since counts as not scanned."""

    def __init__(self, directory: Path) -> None:
        """Read every part."""
        self._directory = directory
        self._rows: dict[str, ScannedVideo] = {}
        for part in sorted(directory.glob("*.parquet")):
            try:
                rows = read_rows(part, ScannedVideo)
            except DamagedError as error:
                log.warning("%s; its videos are scanned again", error)
                continue
            self._rows.update((row.path, row) for row in rows)

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the paths whose present content has not been scanned."""
        return [path for path in paths if self._stale(path)]

    def add(self, rows: Sequence[ScannedVideo]) -> None:
        """Publish one more part."""
        # Time first, so that parts are read in the order they were made and the newest scan wins.
        name = f"{time.time_ns():020d}-{hashlib.sha256(rows[0].path.encode()).hexdigest()[:8]}.parquet"
        write_rows(self._directory / name, ScannedVideo, rows)
        self._rows.update((row.path, row) for row in rows)

    def __getitem__(self, path: str) -> ScannedVideo:
        """Return the newest scan of a path."""
        return self._rows[path]

    def _stale(self, path: str) -> bool:
        row = self._rows.get(path)
        return row is None or (row.num_bytes, row.modified_ns) != file_stamp(path)


def file_stamp(path: str) -> tuple[int, int]:
    """Return size and time of change (ns) of a file, or (-1, 0) where it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def as_video_info(row: ScannedVideo) -> VideoInfo:
    """Return what planning needs of a scan: first frame and end; the frames between are read when decoding."""
    return VideoInfo(
        codec=row.codec,
        pixel_format="",
        width=0,
        height=0,
        rotation_degrees=0,
        fps=row.fps,
        pts_seconds=np.array([row.start_seconds]),
        duration_seconds=row.end_seconds,
    )
