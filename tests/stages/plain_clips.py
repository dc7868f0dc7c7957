"""The choice of clips as it was once written: row by row, with an object for each; slow and obvious."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np

from vidflow.config.fingerprints import fingerprint
from vidflow.errors import VideoError
from vidflow.records import Reject, VideoItem
from vidflow.stages.clips import ChosenClip
from vidflow.stages.scan import ScanInput, ScannedVideo, inputs_of
from vidflow.stages.spans import Taken, find_leak, take
from vidflow.video.sampling import Mode

_TOLERANCE_SECONDS = 1e-6
_SPAN_SLACK_SECONDS = 0.5


def uniform_times(start: float, end: float, *, num_frames: int) -> np.ndarray:
    return start + (np.arange(num_frames) + 0.5) / num_frames * (end - start)


def center_times(start: float, end: float, *, num_frames: int, fps: float) -> np.ndarray:
    middle = (start + end) / 2
    return _clip_times(middle + (np.arange(num_frames) - (num_frames - 1) / 2) / fps, start, end)


def window_times(start: float, end: float, *, num_frames: int, fps: float, stride_seconds: float) -> list[np.ndarray]:
    num_windows = _count_windows(start, end, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds)
    offsets = (np.arange(num_frames) + 0.5) / fps
    return [_clip_times(start + window * stride_seconds + offsets, start, end) for window in range(int(num_windows))]


def first_times(start: float, end: float, *, num_frames: int, fps: float) -> np.ndarray:
    return _clip_times(start + np.arange(num_frames) / fps, start, end)


def segment_times(start: float, end: float, *, num_frames: int, frame_seconds: float) -> np.ndarray:
    num_shown = max(1, round((end - start) / frame_seconds))
    edges = np.round((num_shown - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    # The middle of a frame's time, where rounding cannot reach the next frame.
    return _clip_times(start + ((edges[:-1] + edges[1:]) // 2 + 0.5) * frame_seconds, start, end)


def spread_times(start: float, end: float, *, num_frames: int, fps: float, num_clips: int) -> list[np.ndarray]:
    slack = max(0.0, end - start - num_frames / fps)
    starts = [slack / 2] if num_clips == 1 else np.linspace(0.0, slack, num_clips).tolist()
    offsets = (np.arange(num_frames) + 0.5) / fps
    return [_clip_times(start + each + offsets, start, end) for each in starts]


def row_span(item: VideoItem, *, first: float, last: float) -> tuple[float, float]:
    start = first if item.start_seconds is None else item.start_seconds
    end = last if item.end_seconds is None else item.end_seconds
    if start < first - _SPAN_SLACK_SECONDS or end > last + _SPAN_SLACK_SECONDS or max(start, first) >= min(end, last):
        raise VideoError(
            "SpanOutside",
            f"{item.path}: got the span {start:.3f} to {end:.3f} s, wanted a part of {first:.3f} to {last:.3f} s; "
            "correct start_seconds and end_seconds in the manifest, or fetch the whole video",
        )
    return max(start, first), min(end, last)


def choose_clip_times(
    item: VideoItem,
    span: tuple[float, float],
    *,
    mode: Mode,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    num_clips: int,
    frames_in_file: int,
    seconds_in_file: float,
) -> list[np.ndarray]:
    start, end = span
    match mode:
        case "uniform":
            return [uniform_times(start, end, num_frames=num_frames)]
        case "center":
            return [center_times(start, end, num_frames=num_frames, fps=fps)]
        case "first":
            return [first_times(start, end, num_frames=num_frames, fps=fps)]
        case "segments":
            return [segment_times(start, end, num_frames=num_frames, frame_seconds=seconds_in_file / frames_in_file)]
        case "spread":
            return spread_times(start, end, num_frames=num_frames, fps=fps, num_clips=num_clips)
        case "windows":
            num_windows = _count_windows(start, end, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds)
            if num_windows > max(1, frames_in_file):
                raise VideoError(
                    "TooManyWindows",
                    f"{item.path}: got {num_windows:.0f} windows in {end - start:.3f} s of a video of {frames_in_file} "
                    "frames, wanted no more windows than frames; raise video.sampling.stride_seconds, or export the "
                    "video again if it is not that long",
                )
            return window_times(start, end, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds)
        case _:
            assert_never(mode)


def _count_windows(start: float, end: float, *, num_frames: int, fps: float, stride_seconds: float) -> float:
    spare_seconds = end - start - num_frames / fps
    return max(1.0, 1.0 + float(np.floor((spare_seconds + _TOLERANCE_SECONDS) / stride_seconds)))


def _clip_times(times: np.ndarray, start: float, end: float) -> np.ndarray:
    # Two tolerances before the end: `frames_at` adds one, and the frame that starts at `end` is outside the span.
    held: np.ndarray = np.clip(times, start, max(start, end - 2 * _TOLERANCE_SECONDS))
    return held


def choose_clips(
    items: Sequence[VideoItem],
    scans: Mapping[ScanInput, ScannedVideo],
    *,
    mode: Mode,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    num_clips: int = 1,
) -> tuple[list[ChosenClip], list[Reject]]:
    numbers = {name: index for index, name in enumerate(sorted({item.label for item in items if item.label}))}
    kept = _Kept()
    rejects = []
    for item in items:
        try:
            scan = _usable_scan(item, scans)
            span = row_span(item, first=scan.start_seconds, last=scan.end_seconds)
            grids = choose_clip_times(
                item,
                span,
                mode=mode,
                num_frames=num_frames,
                fps=fps,
                stride_seconds=stride_seconds,
                num_clips=num_clips,
                frames_in_file=scan.num_frames,
                seconds_in_file=scan.end_seconds - scan.start_seconds,
            )
            number = numbers.get(item.label, -1)
            kept.add([_clip(item, scans, span, tuple(times.tolist()), number) for times in grids], span)
        except VideoError as error:
            rejects.append(
                Reject(
                    key="",
                    path=str(item.path),
                    stage="scan",
                    reason=error.reason,
                    message=str(error),
                    attempts=error.attempts,
                )
            )
    return [kept.clips[key] for key in sorted(kept.clips)], rejects


@dataclass(slots=True)
class _Kept:
    clips: dict[str, ChosenClip] = field(default_factory=dict)
    taken: dict[str, list[Taken]] = field(default_factory=dict)

    def add(self, row: Sequence[ChosenClip], span: tuple[float, float]) -> None:
        first = row[0]
        taken = self.taken.setdefault(first.sha256, [])
        wanted = Taken(*span, first.split, first.path)
        if (other := find_leak(taken, wanted)) is not None:
            raise VideoError(
                "Leak",
                f"{first.path}: its span {wanted.start:.3f} to {wanted.end:.3f} s shares seconds of the same content "
                f"with {other.path}, {other.start:.3f} to {other.end:.3f} s, which is in split {other.split!r}, "
                f"not {first.split!r}; kept there only",
            )
        twins = [(self.clips[clip.key], clip) for clip in row if clip.key in self.clips]
        for earlier, clip in twins:
            _refuse_conflict(earlier, clip)
        if len(twins) == len(row):
            raise VideoError("Duplicate", f"{first.path}: same content as {twins[0][0].path}; kept once")
        take(taken, wanted)
        for clip in row:
            self.clips.setdefault(clip.key, clip)


def _usable_scan(item: VideoItem, scans: Mapping[ScanInput, ScannedVideo]) -> ScannedVideo:
    scan, *truth = [scans[each] for each in inputs_of(item)]
    if scan.reason:
        raise VideoError(scan.reason, scan.message, attempts=scan.attempts)
    if item.sha256 not in (None, scan.sha256):
        raise VideoError(
            "OtherBytes",
            f"{item.path}: got sha256 {scan.sha256}, wanted {item.sha256} as the manifest says; fetch it again",
        )
    for annotations in truth:
        if annotations.reason:
            raise VideoError(
                "Annotations",
                f"{item.path}: its annotations cannot be read: {annotations.message}",
                attempts=annotations.attempts,
            )
    return scan


def _clip(
    item: VideoItem,
    scans: Mapping[ScanInput, ScannedVideo],
    span: tuple[float, float],
    times: tuple[float, ...],
    label_index: int,
) -> ChosenClip:
    files = [scans[each] for each in inputs_of(item)]
    return ChosenClip(
        key=fingerprint([files[0].sha256, times]),
        path=str(item.path),
        sha256=files[0].sha256,
        label=item.label,
        label_index=label_index,
        split=item.split,
        times=times,
        annotations=str(item.annotations or ""),
        annotations_sha256=files[1].sha256 if len(files) > 1 else "",
        stamps={file.path: (file.num_bytes, file.modified_ns) for file in files},
        video=fingerprint([files[0].sha256, span]),
    )


def _refuse_conflict(first: ChosenClip, second: ChosenClip) -> None:
    if first.label != second.label:
        raise VideoError(
            "LabelConflict",
            f"{second.path}: same content as {first.path}, which is labelled "
            f"{first.label!r}, not {second.label!r}; the first label stands",
        )
    if first.annotations_sha256 != second.annotations_sha256:
        raise VideoError(
            "LabelConflict",
            f"{second.path}: same content as {first.path}, with annotations {second.annotations or 'none'} that are "
            f"not those of {first.annotations or 'none'}; the first ones stand",
        )


def content_digest(clips: Sequence[ChosenClip]) -> str:
    return fingerprint([[c.key, c.label_index, c.label, c.split, c.annotations_sha256] for c in clips])
