"""From rows and scans to clips: a row is all clips or one reject, by content and by seconds."""

import dataclasses
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vidflow.records import VideoItem
from vidflow.stages.clips import choose_clips
from vidflow.stages.scan import ScannedVideo, inputs_of
from vidflow.stages.scans import Scans

UNIFORM = {"mode": "uniform", "num_frames": 4, "fps": 4.0, "stride_seconds": 1.0}
WINDOWS = UNIFORM | {"mode": "windows"}


def scan(path: str, sha256: str = "", **facts) -> ScannedVideo:
    known = {"is_video": True}
    known |= {"num_bytes": 1, "modified_ns": 2, "changed_ns": 3, "timeout_seconds": 60.0, "memory_mib": 4096}
    known |= {"fps": 25.0, "num_frames": 250, "end_seconds": 10.0, "sha256": sha256 or path}
    return ScannedVideo(path=path, **(known | facts))


def row(path: str, split: str = "train", span=(None, None), label: str = "a", annotations: str | None = None):
    return VideoItem(
        path=Path(path),
        label=label,
        split=split,
        start_seconds=span[0],
        end_seconds=span[1],
        annotations=Path(annotations) if annotations else None,
    )


def choose(rows, scans=None, sampling=UNIFORM):
    """Choose clips of rows whose files differ, unless `scans` says otherwise; return clips per path, and reasons."""
    inputs = {each for item in rows for each in inputs_of(item)}
    known = [
        dataclasses.replace((scans or {}).get(each.path) or scan(each.path), path=each.path, is_video=each.is_video)
        for each in inputs
    ]
    clips, rejects = choose_clips(rows, Scans.of(known), **sampling)
    return Counter(clip.path for clip in clips), [(reject.path, reject.reason) for reject in rejects]


def test_parts_of_a_video_that_share_seconds_may_not_lie_in_two_splits():
    rows = [row("/a", "train", (0, 8)), row("/a", "val", (1, 9)), row("/a", "val", (8, 10))]
    clips, rejects = choose(rows)
    assert clips == {"/a": 2}
    assert rejects == [("/a", "Leak")]


def test_the_same_content_leaks_under_another_name_and_another_span():
    rows = [row("/a", "train", (0, 8)), row("/b", "val")]
    clips, rejects = choose(rows, {"/a": scan("/a", "same"), "/b": scan("/b", "same")})
    assert clips == {"/a": 1}
    assert rejects == [("/b", "Leak")]


def test_parts_that_touch_do_not_leak_though_their_times_were_rounded():
    rows = [row("/a", "train", (0, 0.1 + 0.2)), row("/a", "val", (0.3, 5)), row("/a", "train", (5, 10))]
    assert choose(rows) == ({"/a": 3}, [])


def test_a_part_within_another_leaks_however_short_it_is():
    assert choose([row("/a", "train"), row("/a", "val", (5, 5 + 1e-7))])[1] == [("/a", "Leak")]
    assert choose([row("/a", "val", (5, 5 + 1e-7)), row("/a", "train")])[1] == [("/a", "Leak")]


def test_a_row_that_is_left_out_leaves_no_other_out():
    rows = [
        row("/a", "train", (0, 4)),
        row("/a", "val", (2, 8)),  # leaks, so that its seconds 4 to 8 belong to nobody
        row("/a", "train", (0, 4), label="b"),  # conflicts
        row("/a", "test", (4, 8)),
        row("/a", "train", (0, 4)),
    ]
    clips, rejects = choose(rows)
    assert clips == {"/a": 2}
    assert [reason for _, reason in rejects] == ["Leak", "LabelConflict", "Duplicate"]


def test_windows_that_coincide_are_kept_once_and_their_row_is_no_reject():
    rows = [row("/a", span=(0, 4)), row("/a", span=(2, 6)), row("/a", span=(1, 5))]
    assert choose(rows, sampling=WINDOWS) == ({"/a": 6}, [("/a", "Duplicate")])


def test_one_window_with_another_label_leaves_the_whole_row_out():
    rows = [row("/a", span=(0, 4)), row("/a", span=(3, 8), label="b"), row("/a", span=(4, 8), label="b")]
    clips, rejects = choose(rows, sampling=WINDOWS)
    assert clips == {"/a": 8}
    assert rejects == [("/a", "LabelConflict")]


def test_one_window_with_another_split_leaves_the_whole_row_out():
    assert choose([row("/a", span=(0, 4)), row("/a", "val", (3, 9))], sampling=WINDOWS) == ({"/a": 4}, [("/a", "Leak")])


def test_other_ground_truth_for_the_same_clip_is_a_conflict():
    rows = [row("/a", annotations="/a.npz"), row("/a", annotations="/copy.npz"), row("/a", annotations="/b.npz")]
    _, rejects = choose(rows, {"/copy.npz": scan("/copy.npz", "/a.npz")})
    assert [reason for _, reason in rejects] == ["Duplicate", "LabelConflict"]


def test_windows_over_a_file_that_claims_300_days_are_refused_without_being_made():
    days = 300 * 86400.0
    clips, rejects = choose([row("/a")], {"/a": scan("/a", num_frames=100, end_seconds=days)}, WINDOWS)
    assert (clips, rejects) == ({}, [("/a", "TooManyWindows")])
    clips, rejects = choose([row("/a")], {"/a": scan("/a", num_frames=10)}, WINDOWS)
    assert (clips, rejects) == ({"/a": 10}, [])


parts = st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from(["train", "val", "test"]))


@given(st.lists(parts, max_size=25))
def test_leaks_are_those_that_comparing_all_pairs_finds(chosen):
    rows = [row("/a", split, (start / 2, (start + length) / 2)) for start, length, split in chosen]
    kept: list[VideoItem] = []
    wanted = 0
    for each in rows:
        overlaps = [k for k in kept if min(k.end_seconds, each.end_seconds) > max(k.start_seconds, each.start_seconds)]
        if any(k.split != each.split for k in overlaps):
            wanted += 1
        else:
            kept.append(each)
    _, rejects = choose(rows, {"/a": scan("/a", end_seconds=20.0)})
    assert [reason for _, reason in rejects].count("Leak") == wanted


def test_a_video_whose_bytes_are_not_those_of_the_manifest_is_a_reject():
    rows = [dataclasses.replace(row("/a"), sha256="0" * 64), dataclasses.replace(row("/b"), sha256="1" * 64)]
    clips, rejects = choose(rows, {"/a": scan("/a", "0" * 64), "/b": scan("/b", "f" * 64)})
    assert clips == {"/a": 1}
    assert rejects == [("/b", "OtherBytes")]


def test_a_clip_of_another_split_than_the_training_split_becomes_three_squares_of_its_video():
    rows, scans = [row("/a", "train"), row("/b", "val")], Scans.of([scan("/a"), scan("/b")])
    sampling = {**UNIFORM, "mode": "spread", "num_clips": 2}
    plain, _ = choose_clips(rows, scans, **sampling)
    clips, rejects = choose_clips(rows, scans, plain_split="train", **sampling)
    assert rejects == []
    assert Counter((clip.path, clip.crop) for clip in clips) == {
        ("/a", "center"): 2, ("/b", "center"): 2, ("/b", "left"): 2, ("/b", "right"): 2,
    }  # fmt: skip
    # The central square is the clip that it is without the others.
    assert {clip.key for clip in clips if clip.crop == "center"} == set(plain.keys)
    assert len(set(clips.keys)) == len(clips)
    of_b = {clip.times: set() for clip in clips if clip.path == "/b"}
    for clip in clips:
        if clip.path == "/b":
            of_b[clip.times].add(clip.crop)
    assert list(of_b.values()) == [{"center", "left", "right"}] * 2
    assert len({clip.video for clip in clips}) == 2
    assert {clip.crop for clip in plain} == {None}


def test_three_squares_of_a_window_are_no_further_windows():
    # As many windows as frames are allowed, and three squares of each are not more.
    rows, scans = [row("/a", "val")], Scans.of([scan("/a", num_frames=10)])
    clips, rejects = choose_clips(rows, scans, plain_split="train", **{**WINDOWS, "stride_seconds": 1.0})
    assert (len(clips), rejects) == (30, [])
