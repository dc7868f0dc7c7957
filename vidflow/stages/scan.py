"""Scanning: the content hash and the headers of every video, stored with its path, size and time of change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from vidflow.counts import Count, uncounted
from vidflow.errors import RejectReason, VideoError
from vidflow.files import FileState, file_state, make_local
from vidflow.records import VideoItem
from vidflow.stages.killers import MESSAGE
from vidflow.stages.transient import Limits, try_twice
from vidflow.video.sandbox import Sandbox
from vidflow.video.sandboxed import check_unchanged, scan_file


class ScanInput(NamedTuple):
    """A file to scan, and its role: one row may name a file as its video, and another row as its ground truth.

    Attributes:
        path: The file.
        is_video: Whether it is named as a video; else it is named as dense ground truth.
    """

    path: str
    is_video: bool


def inputs_of(item: VideoItem) -> list[ScanInput]:
    """Return the inputs to scan for a row: its video, then its ground truth if there is one."""
    truth = [ScanInput(str(item.annotations), is_video=False)] if item.annotations else []
    return [ScanInput(str(item.path), is_video=True), *truth]


def list_inputs(items: Iterable[VideoItem]) -> list[ScanInput]:
    """Return every file whose content the clips of these rows depend on, once for each role it has."""
    return sorted({each for item in items for each in inputs_of(item)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedVideo:
    """Result of scanning one input; `reason` and `message` say why it is unusable, and are empty if it is usable.

    Attributes:
        path: The file.
        is_video: Whether it was scanned as a video.
        num_bytes: Its size, -1 if it could not be read.
        modified_ns: When its bytes last changed, in nanoseconds.
        changed_ns: When its permissions last changed, in nanoseconds.
        timeout_seconds: Time limit of the scan.
        memory_mib: Memory limit of the scan, in MiB.
        sha256: Digest of its bytes.
        codec: FFmpeg's codec name.
        fps: Mean frame rate.
        num_frames: Frames in it.
        start_seconds: Time of the first frame.
        end_seconds: End of the last frame.
        reason: Why it is unusable.
        message: One sentence about it.
        attempts: How often the scan was tried.
        name: Its path below the folder of the videos, by which it is known after the folder has moved; None if it is
            not below that folder, or if an older version made the scan.
    """

    path: str
    is_video: bool
    num_bytes: int
    modified_ns: int
    changed_ns: int
    timeout_seconds: float
    memory_mib: int
    sha256: str = ""
    codec: str = ""
    fps: float = 0.0
    num_frames: int = 0
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    reason: RejectReason | Literal[""] = ""
    message: str = ""
    attempts: int = 1
    name: str | None = None

    @property
    def input(self) -> ScanInput:
        """What was scanned."""
        return ScanInput(self.path, self.is_video)

    @property
    def state(self) -> FileState:
        """State of the file when it was scanned."""
        return FileState(self.num_bytes, self.modified_ns, self.changed_ns)

    @property
    def limits(self) -> Limits:
        """Limits of the scan."""
        return Limits(timeout_seconds=self.timeout_seconds, memory_mib=self.memory_mib)


class VideoScanner:
    """Hashes and probes videos in a process that can be killed."""

    def __init__(self, *, timeout_seconds: float, memory_mib: int) -> None:
        """Start no process yet; the first scan starts it."""
        self._limits = Limits(timeout_seconds=timeout_seconds, memory_mib=memory_mib)
        self._sandbox = Sandbox(timeout_seconds=timeout_seconds, memory_mib=memory_mib)

    def __call__(self, inputs: Sequence[ScanInput], count: Count = uncounted) -> list[ScannedVideo]:
        """Return one row per input, in order; a broken video is a row with a reason."""
        rows = []
        for each in inputs:
            rows.append(self._scan(*each))
            count(1, num_rejects=bool(rows[-1].reason))
        return rows

    def _scan(self, path: str, is_video: bool) -> ScannedVideo:
        limits, state = self._limits, file_state(path)
        row = _empty_row(ScanInput(path, is_video), limits, state)
        try:
            make_local(path)
            sha256, info = try_twice(
                lambda: self._sandbox.call(scan_file, Path(path), limits.timeout_seconds, is_video=is_video)
            )
            check_unchanged({path: state.stamp})  # else the hash and the headers may be of two different contents
        except VideoError as error:
            return replace(row, reason=error.reason, message=str(error), attempts=error.attempts)
        if info is None:
            return replace(row, sha256=sha256)
        return replace(
            row,
            sha256=sha256,
            codec=info.codec,
            fps=info.fps,
            num_frames=len(info.pts_seconds),
            start_seconds=float(info.pts_seconds[0]),
            end_seconds=info.duration_seconds,
        )


def _empty_row(scanned: ScanInput, limits: Limits, state: FileState) -> ScannedVideo:
    """Return the row of an input of which nothing but its state is known."""
    return ScannedVideo(
        path=scanned.path,
        is_video=scanned.is_video,
        num_bytes=state.num_bytes,
        modified_ns=state.modified_ns,
        changed_ns=state.changed_ns,
        timeout_seconds=limits.timeout_seconds,
        memory_mib=limits.memory_mib,
    )


def refuse_scan(limits: Limits, scanned: ScanInput) -> list[ScannedVideo]:
    """Return the row of an input that kills the worker that scans it."""
    row = _empty_row(scanned, limits, file_state(scanned.path))
    return [replace(row, reason="WorkerDied", message=f"{scanned.path}: {MESSAGE}")]
