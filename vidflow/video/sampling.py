"""Choose the times of a video that become the frames of a clip.

Sampling uses times, never frame numbers, so it works for constant and variable frame rates. All times are seconds on
the video's own clock. The times of many clips are chosen at once: starts and ends are then columns.

Axes: R clips or rows of a manifest, T frames of a clip.
"""

from typing import Literal, assert_never

import numpy as np
from jaxtyping import Bool, Float64, Int64

Mode = Literal["uniform", "center", "windows", "first", "segments", "spread"]
Seconds = float | Float64[np.ndarray, "R 1"]
"""One time for one clip, or a column of times for many."""
Times = Float64[np.ndarray, " T"] | Float64[np.ndarray, "R T"]

# Frame times are multiples of at least a microsecond in every container; sums of doubles stray by far less.
_TOLERANCE_SECONDS = 1e-6

# Published spans are rounded, often to whole or tenths of seconds, so a span may exceed its video by this much.
_SPAN_SLACK_SECONDS = 0.5


def uniform_times(start: Seconds, end: Seconds, *, num_frames: int) -> Times:
    """Return the centres of `num_frames` equal segments of [start, end).

    start                              end
      |-------|-------|-------|-------|
          x       x       x       x          num_frames = 4
    """
    times: Times = start + (np.arange(num_frames) + 0.5) / num_frames * (end - start)
    return times


def center_times(start: Seconds, end: Seconds, *, num_frames: int, fps: float) -> Times:
    """Return `num_frames` times `1 / fps` apart around the middle of [start, end), clipped to it.

    start            middle            end
      |----------------|----------------|
               x    x    x    x              num_frames = 4
    """
    middle = (start + end) / 2
    return _clip_times(middle + (np.arange(num_frames) - (num_frames - 1) / 2) / fps, start, end)


def window_times(
    start: Seconds,
    end: Seconds,
    *,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    number: Int64[np.ndarray, "R 1"] | None = None,
) -> Float64[np.ndarray, "R T"]:
    """Return the times of every window of `num_frames / fps` seconds that fits into [start, end), or of some by number.

    A window that does not fit is left out. If no window fits, the first is kept and its times are clipped.

        start                              end
          |--------------------------------|
          [ x  x  x  x ]
                  [ x  x  x  x ]                 one every stride_seconds
                          [ x  x  x  x ]
                                  [ x  x  :      left out
    """
    if number is None:
        spare = np.array([end - start]) - num_frames / fps
        number = np.arange(int(_count_windows(spare, stride_seconds=stride_seconds)[0]))[:, None]
    times = _clip_times(start + number * stride_seconds + (np.arange(num_frames) + 0.5) / fps, start, end)
    return times.reshape(-1, num_frames)


def first_times(start: Seconds, end: Seconds, *, num_frames: int, fps: float) -> Times:
    """Return `num_frames` times `1 / fps` apart from `start` on; after the end, the last frame is repeated.

    start                              end
      x    x    x    x                         num_frames = 4
    """
    return _clip_times(start + np.arange(num_frames) / fps, start, end)


def segment_times(start: Seconds, end: Seconds, *, num_frames: int, frame_seconds: Seconds) -> Times:
    """Return the times of the middle frames of `num_frames` equal segments of the frames of [start, end).

    Segments are counted in frames, from the first to the last, and rounded to whole frames, half to even. Exact for
    videos of constant frame rate.

    Source: the loader for Something-Something of the released video transformers: with s = (frames - 1) / T, segment i
    gives the frame (round(s i) + round(s (i + 1))) // 2.
    """
    num_shown = np.maximum(1, np.rint((end - start) / frame_seconds))
    edges = np.round((num_shown - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    # The middle of a frame's time, where rounding cannot reach the next frame.
    return _clip_times(start + ((edges[..., :-1] + edges[..., 1:]) // 2 + 0.5) * frame_seconds, start, end)


def spread_times(
    start: Seconds,
    end: Seconds,
    *,
    num_frames: int,
    fps: float,
    num_clips: int,
    number: Int64[np.ndarray, "R 1"] | None = None,
) -> Float64[np.ndarray, "R T"]:
    """Return the times of `num_clips` windows of `num_frames / fps` seconds, spread evenly from `start` to `end`.

    One window is in the middle. In a span that is shorter than a window, the last frame is repeated. With `number`,
    only the windows of these numbers are returned.

        start                              end
          [ x  x  x  x ]
                    [ x  x  x  x ]                 num_clips = 3
                              [ x  x  x  x ]
    """
    number = np.arange(num_clips)[:, None] if number is None else number
    slack = np.maximum(0.0, end - start - num_frames / fps)
    # As `np.linspace` has them: the last is the slack itself, whatever a product of rounded steps would be.
    step = slack / max(1, num_clips - 1)
    first = slack / 2 if num_clips == 1 else np.where(number == num_clips - 1, slack, number * step)
    times = _clip_times(start + first + (np.arange(num_frames) + 0.5) / fps, start, end)
    return times.reshape(-1, num_frames)


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


def row_spans(
    starts: Float64[np.ndarray, " R"],
    ends: Float64[np.ndarray, " R"],
    *,
    first: Float64[np.ndarray, " R"],
    last: Float64[np.ndarray, " R"],
) -> tuple[Float64[np.ndarray, " R"], Float64[np.ndarray, " R"], Bool[np.ndarray, " R"]]:
    """Return the spans of rows, clipped to their videos if rounding made them a little longer.

    Args:
        starts: Start of each row; NaN is the start of the video.
        ends: End of each row; NaN is the end of the video.
        first: Time of each video's first frame, in seconds.
        last: End of its last frame, in seconds.

    Returns:
        Starts and ends, and whether each span is not empty and exceeds its video by no more than rounding.
    """
    start, end = np.where(np.isnan(starts), first, starts), np.where(np.isnan(ends), last, ends)
    low, high = np.maximum(start, first), np.minimum(end, last)
    is_inside = (start >= first - _SPAN_SLACK_SECONDS) & (end <= last + _SPAN_SLACK_SECONDS) & (low < high)
    return low, high, is_inside


def count_clips(
    start: Float64[np.ndarray, " R"],
    end: Float64[np.ndarray, " R"],
    *,
    mode: Mode,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    num_clips: int,
) -> Float64[np.ndarray, " R"]:
    """Return how many clips rows give. A float, because false times in a file can make it huge.

    More windows than the file has frames cannot be meant: many would show the same frames, and the span may be a lie,
    as a file of a few kilobytes can claim to last a year.

    Args:
        start: Start of each row's span.
        end: End of each row's span.
        mode: How to sample the span.
        num_frames: Frames per clip, at least 1.
        fps: Frames per second within a clip.
        stride_seconds: Distance between the starts of two windows.
        num_clips: Number of clips for `spread`.
    """
    if mode == "windows":
        return _count_windows(end - start - num_frames / fps, stride_seconds=stride_seconds)
    return np.full(len(start), float(num_clips if mode == "spread" else 1))


def clip_times(
    start: Float64[np.ndarray, "R 1"],
    end: Float64[np.ndarray, "R 1"],
    number: Int64[np.ndarray, "R 1"],
    *,
    mode: Mode,
    num_frames: int,
    fps: float,
    stride_seconds: float,
    num_clips: int,
    frame_seconds: Float64[np.ndarray, "R 1"],
) -> Float64[np.ndarray, "R T"]:
    """Return the times of clips; `windows` and `spread` give many of a row, the others give one.

    Args:
        start: Start of the span of each clip's row, in seconds.
        end: End of that span.
        number: Number of each clip among those of its row.
        mode: How to sample the span.
        num_frames: Frames per clip, at least 1.
        fps: Frames per second within a clip, for all modes but `uniform` and `segments`.
        stride_seconds: Distance between the starts of two windows.
        num_clips: Number of clips for `spread`.
        frame_seconds: Length of the whole video over its number of frames.
    """
    match mode:
        case "uniform":
            return uniform_times(start, end, num_frames=num_frames)
        case "center":
            return center_times(start, end, num_frames=num_frames, fps=fps)
        case "first":
            return first_times(start, end, num_frames=num_frames, fps=fps)
        case "segments":
            return segment_times(start, end, num_frames=num_frames, frame_seconds=frame_seconds)
        case "spread":
            return spread_times(start, end, num_frames=num_frames, fps=fps, num_clips=num_clips, number=number)
        case "windows":
            return window_times(
                start, end, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds, number=number
            )
        case _:
            assert_never(mode)


def _count_windows(spare_seconds: Float64[np.ndarray, " R"], *, stride_seconds: float) -> Float64[np.ndarray, " R"]:
    """Return the number of whole windows, at least 1, from the seconds that the first one leaves."""
    return np.maximum(1.0, 1.0 + np.floor((spare_seconds + _TOLERANCE_SECONDS) / stride_seconds))


def _clip_times(times: Times, start: Seconds, end: Seconds) -> Times:
    """Clip times to [start, end), so that a short video repeats its nearest frame."""
    # Two tolerances before the end: `frames_at` adds one, and the frame that starts at `end` is outside the span.
    held: Times = np.clip(times, start, np.maximum(start, end - 2 * _TOLERANCE_SECONDS))
    return held
