"""Sampling: where the frames of a clip lie in time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.records import VideoInfo
from vidflow.video.sampling import (
    center_times,
    clip_times,
    count_clips,
    frames_at,
    row_spans,
    uniform_times,
    window_times,
)

spans = st.tuples(st.floats(0, 1e4), st.floats(0.05, 1e4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
frame_counts = st.integers(1, 64)
rates = st.floats(0.5, 120)


def _info(first=0.0, duration=10.0, fps=25.0):
    return VideoInfo(
        codec="h264",
        pixel_format="yuv420p",
        width=64,
        height=64,
        rotation_degrees=0,
        fps=fps,
        pts_seconds=np.arange(first, duration, 1 / fps),
        duration_seconds=duration,
    )


def _plan(info, start=None, end=None, mode="uniform", num_frames=4, fps=2.0, stride_seconds=1.0):
    """Return the times of every clip of one row of a video."""
    sampling = {"mode": mode, "num_frames": num_frames, "fps": fps, "stride_seconds": stride_seconds, "num_clips": 1}
    low, high, _ = _span(info, start, end)
    numbers = np.arange(int(count_clips(low, high, **sampling)[0]))[:, None]
    seconds = np.array([[(info.duration_seconds - info.pts_seconds[0]) / len(info.pts_seconds)]])
    return clip_times(low[:, None], high[:, None], numbers, frame_seconds=seconds, **sampling)


def _span(info, start, end):
    given = (np.array([np.nan if value is None else value]) for value in (start, end))
    return row_spans(*given, first=info.pts_seconds[:1], last=np.array([info.duration_seconds]))


@given(spans, frame_counts)
def test_uniform_times_cut_the_span_into_equal_parts_that_mirror_each_other(span, num_frames):
    start, end = span
    times = uniform_times(start, end, num_frames=num_frames)
    assert len(times) == num_frames
    assert start <= times[0]
    assert times[-1] <= end
    assert times + times[::-1] == pytest.approx(np.full(num_frames, start + end))
    assert np.diff(times) == pytest.approx(np.full(num_frames - 1, (end - start) / num_frames), abs=1e-8)


@given(spans, frame_counts, rates)
def test_center_times_stay_inside_and_keep_the_rate_where_there_is_room(span, num_frames, fps):
    start, end = span
    times = center_times(start, end, num_frames=num_frames, fps=fps)
    assert len(times) == num_frames
    assert (times >= start).all()
    assert (times < end).all()
    if num_frames / fps < end - start:
        assert np.diff(times) == pytest.approx(np.full(num_frames - 1, 1 / fps), abs=1e-5)
        assert times.mean() == pytest.approx((start + end) / 2, abs=1e-5)


@given(spans, frame_counts, rates, st.floats(0.5, 100))
def test_windows_are_those_that_a_walk_along_the_video_finds(span, num_frames, fps, stride_seconds):
    start, end = span
    if (end - start) / stride_seconds > 1000:
        end = start + 1000 * stride_seconds
    windows = window_times(start, end, num_frames=num_frames, fps=fps, stride_seconds=stride_seconds)
    found = 0
    while start + found * stride_seconds + num_frames / fps <= end + 1e-6:  # slow, obvious
        found += 1
    assert abs(len(windows) - max(found, 1)) <= 1  # the sums may fall on either side of the tolerance
    for number, times in enumerate(windows):
        assert (times >= start).all()
        assert (times < end).all()
        if found:
            assert times[0] == pytest.approx(start + number * stride_seconds + 0.5 / fps, abs=1e-5)


def test_windows_have_the_numbers_one_counts_by_hand():
    windows = window_times(0.0, 4.0, num_frames=4, fps=2.0, stride_seconds=1.0)
    assert np.stack(windows).tolist() == [[0.25, 0.75, 1.25, 1.75], [1.25, 1.75, 2.25, 2.75], [2.25, 2.75, 3.25, 3.75]]
    assert len(window_times(0.0, 3.9, num_frames=4, fps=2.0, stride_seconds=1.0)) == 2


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.lists(st.floats(-5, 15), min_size=1, max_size=20))
def test_the_frame_on_display_is_the_last_that_has_begun(gaps, times):
    pts_seconds = 1.0 + np.cumsum(gaps) / 100
    expected = []
    for time in times:  # slow, obvious
        begun = [index for index, pts in enumerate(pts_seconds) if pts <= time + 1e-6]
        expected.append(begun[-1] if begun else 0)
    assert frames_at(pts_seconds, np.array(times)).tolist() == expected


def test_rounding_of_a_sum_does_not_fall_back_by_a_frame():
    pts_seconds = np.arange(1000) / 30
    accumulated = np.cumsum(np.full(1000, 1 / 30)) - 1 / 30
    assert (accumulated < pts_seconds).any()  # or this would show nothing
    assert frames_at(pts_seconds, accumulated).tolist() == list(range(1000))


def test_as_many_uniform_frames_as_the_video_has_are_all_of_its_frames():
    info = _info(duration=4.0)
    (times,) = _plan(info, num_frames=100)
    assert frames_at(info.pts_seconds, times).tolist() == list(range(100))


def test_a_variable_rate_is_sampled_by_time_not_by_number():
    pts_seconds = np.concatenate([np.arange(0, 1, 0.01), np.arange(1, 10, 1.0)])  # 100 frames, then 9 slow ones
    indices = frames_at(pts_seconds, uniform_times(0.0, 10.0, num_frames=10))
    assert indices.tolist() == [50, 100, 101, 102, 103, 104, 105, 106, 107, 108]


@pytest.mark.parametrize("mode", ["uniform", "center", "windows"])
def test_a_short_video_repeats_its_frames(mode):
    info = _info(duration=0.08)
    (times,) = _plan(info, mode=mode, num_frames=8, fps=20.0)
    indices = frames_at(info.pts_seconds, times)
    assert len(indices) == 8
    assert set(indices.tolist()) == {0, 1}


@pytest.mark.parametrize("mode", ["uniform", "center", "windows"])
def test_no_frame_comes_from_outside_the_span(mode):
    info = _info()
    for times in _plan(info, 2.0, 3.0, mode=mode, num_frames=40, fps=4.0):
        pts_seconds = info.pts_seconds[frames_at(info.pts_seconds, times)]
        assert (pts_seconds >= 2.0 - 1e-6).all()
        assert (pts_seconds < 3.0 - 1e-6).all()


def test_a_video_that_starts_late_is_sampled_on_its_own_clock():
    (times,) = _plan(_info(first=5.0, duration=9.0))
    assert times.tolist() == [5.5, 6.5, 7.5, 8.5]


def test_a_span_that_sticks_out_by_rounding_is_cut():
    (times,) = _plan(_info(duration=9.9), 0.0, 10.0)
    assert times == pytest.approx(uniform_times(0.0, 9.9, num_frames=4))


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 11.0), (-1.0, 5.0), (10.2, None), (5.0, 5.0), (6.0, 5.0), (None, 0.0)]
)
def test_a_span_outside_the_video_is_not_inside(start, end):
    assert _span(_info(), start, end)[2].tolist() == [False]
    assert _span(_info(), 0.0, 10.4)[2].tolist() == [True]
