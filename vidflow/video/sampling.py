"""Choose the times of a video that become the frames of a clip.

Sampling uses times, never frame numbers, so it works for constant and variable frame rates. All times are seconds on
the video's own clock.

Axes: T frames of a clip.
"""

from typing import Literal, assert_never

import numpy as np
from jaxtyping import Float64, Int64

from vidflow.errors import VideoError
from vidflow.records import VideoItem

Mode = Literal["uniform", "center", "windows", "first", "segments", "spread"]

# Frame times are multiples of at least a microsecond in every container; sums of doubles stray by far less.
_TOLERANCE_SECONDS = 1e-6

# Published spans are rounded, often to whole or tenths of seconds, so a span may exceed its video by this much.
_SPAN_SLACK_SECONDS = 0.5


def uniform_times(start: float, end: float, *, num_frames: int) -> Float64[np.ndarray, " T"]:
    """Return the centres of `num_frames` equal segments of [start, end).

    start                              end
      |-------|-------|-------|-------|
          x       x       x       x          num_frames = 4
    """
    return start + (np.arange(num_frames) + 0.5) / num_frames * (end - start)


def center_times(start: float, end: float, *, num_frames: int, fps: float) -> Float64[np.ndarray, " T"]:
    """Return `num_frames` times `1 / fps` apart around the middle of [start, end), clipped to it.

    start            middle            end
      |----------------|----------------|
               x    x    x    x              num_frames = 4
    """
    middle = (start + end) / 2
    return _clip_times(middle + (np.arange(num_frames) - (num_frames - 1) / 2) / fps, start, end)


def window_times(
    start: float, end: float, *, num_frames: int, fps: float, stride_seconds: float
) -> list[Float64[np.ndarray, " T"]]:
    """Return the times of every window of `num_frames / fps` seconds that fits into [start, end).

    A window that does not fit is left out. If no window fits, the first is kept and its times are clipped.

        start                              end
          |--------------------------------|
          [ x  x  x  x ]
                  [ x  x  x  x ]                 one every stride_seconds
                          [ x  x  x  x ]
                                  [ x  x  :      left out
    """
    num_windows = _count_windows(start, end, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds)
    offsets = (np.arange(num_frames) + 0.5) / fps
    return [_clip_times(start + window * stride_seconds + offsets, start, end) for window in range(int(num_windows))]


def first_times(start: float, end: float, *, num_frames: int, fps: float) -> Float64[np.ndarray, " T"]:
    """Return `num_frames` times `1 / fps` apart from `start` on; after the end, the last frame is repeated.

    start                              end
      x    x    x    x                         num_frames = 4
    """
    return _clip_times(start + np.arange(num_frames) / fps, start, end)


def segment_times(start: float, end: float, *, num_frames: int, frame_seconds: float) -> Float64[np.ndarray, " T"]:
    """Return the times of the middle frames of `num_frames` equal segments of the frames of [start, end).

    Segments are counted in frames, from the first to the last, and rounded to whole frames, half to even. Exact for
    videos of constant frame rate.

    Source: the loader for Something-Something of the released video transformers: with s = (frames - 1) / T, segment i
    gives the frame (round(s i) + round(s (i + 1))) // 2.
    """
    num_shown = max(1, round((end - start) / frame_seconds))
    edges = np.round((num_shown - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    # The middle of a frame's time, where rounding cannot reach the next frame.
    return _clip_times(start + ((edges[:-1] + edges[1:]) // 2 + 0.5) * frame_seconds, start, end)


def spread_times(
    start: float, end: float, *, num_frames: int, fps: float, num_clips: int
) -> list[Float64[np.ndarray, " T"]]:
    """Return the times of `num_clips` windows of `num_frames / fps` seconds, spread evenly from `start` to `end`.

    One window is in the middle. In a span that is shorter than a window, the last frame is repeated.

        start                              end
          [ x  x  x  x ]
                    [ x  x  x  x ]                 num_clips = 3
                              [ x  x  x  x ]
    """
    slack = max(0.0, end - start - num_frames / fps)
    starts = [slack / 2] if num_clips == 1 else np.linspace(0.0, slack, num_clips).tolist()
    offsets = (np.arange(num_frames) + 0.5) / fps
    return [_clip_times(start + each + offsets, start, end) for each in starts]


def frames_at(pts_seconds: Float64[np.ndarray, " frames"], times: Float64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
    """Return the index of the frame on display at each time: the last frame that has started.

        frames   0        1    2                 3
                 |--------|----|-----------------|-----
        times        x     x       x    x    x   x
        result       0     1       2    2    2   3

    Args:
        pts_seconds: Presentation times, ascending.
        times: Times wanted. A time before the first frame gives the first frame; after the last, the last.
    """
    return np.maximum(np.searchsorted(pts_seconds, times + _TOLERANCE_SECONDS, side="right") - 1, 0)


def row_span(item: VideoItem, *, first: float, last: float) -> tuple[float, float]:
    """Return the span of a row, clipped to the video if rounding made it a little longer.

    Args:
        item: The row, with or without a span.
        first: Time of the video's first frame, in seconds.
        last: End of its last frame, in seconds.

    Raises:
        VideoError: `SpanOutside` if the span is empty or exceeds the video by more than rounding.
    """
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
) -> list[Float64[np.ndarray, " T"]]:
    """Return the times of every clip of a manifest row; `windows` and `spread` may give many, the others give one.

    Args:
        item: The row, for messages.
        span: Its start and end from `row_span`, in seconds.
        mode: How to sample the span.
        num_frames: Frames per clip, at least 1.
        fps: Frames per second within a clip, for all modes but `uniform` and `segments`.
        stride_seconds: Distance between the starts of two windows.
        num_clips: Number of clips for `spread`.
        frames_in_file: Frames of the whole video.
        seconds_in_file: Its length.

    Raises:
        VideoError: `TooManyWindows` if there are more windows than frames. Many must then show the same frames, and
            the span may be a lie: a file of a few kilobytes can claim to last a year.
    """
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
    """Return the number of whole windows, at least 1. A float, because false times in a file can make it huge."""
    spare_seconds = end - start - num_frames / fps
    return max(1.0, 1.0 + float(np.floor((spare_seconds + _TOLERANCE_SECONDS) / stride_seconds)))


def _clip_times(times: Float64[np.ndarray, " T"], start: float, end: float) -> Float64[np.ndarray, " T"]:
    """Clip times to [start, end), so that a short video repeats its nearest frame."""
    # Two tolerances before the end: `frames_at` adds one, and the frame that starts at `end` is outside the span.
    held: Float64[np.ndarray, " T"] = np.clip(times, start, max(start, end - 2 * _TOLERANCE_SECONDS))
    return held
