"""Rejects that do not outlive their cause: the index and the shards know when one is due again."""

import os
from dataclasses import replace

import numpy as np
import pytest
from test_shard import ENCODING, unit_of

from vidflow.errors import VideoError
from vidflow.records import Reject, VideoItem
from vidflow.stages.clips import choose_clips
from vidflow.stages.scan import ScanInput, VideoScanner
from vidflow.stages.scan_index import VideoIndex
from vidflow.stages.scans import Scans
from vidflow.stages.shard import ShardBuilder
from vidflow.stages.shard_work import edition_of
from vidflow.stages.transient import KILLED, TRANSIENT, Limits, is_due, try_twice
from vidflow.store.layout import committed_entry
from vidflow.video.ffmpeg import write_h264

LIMITS = {"timeout_seconds": 60.0, "memory_mib": 4096}
TOO_SHORT = {"timeout_seconds": 1e-6, "memory_mib": 4096}


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    write_h264(path, np.zeros((6, 32, 32, 3), np.uint8), fps=10)
    return path


def as_video(path) -> ScanInput:
    return ScanInput(str(path), is_video=True)


def index_of(folder, rows, **limits) -> VideoIndex:
    VideoIndex(folder / "index", Limits(**LIMITS)).add(rows)
    return VideoIndex(folder / "index", Limits(**(LIMITS | limits)))


def test_a_video_that_timed_out_is_scanned_again_with_more_time_only(tmp_path, video):
    (row,) = VideoScanner(**LIMITS)([as_video(video)])
    VideoIndex(tmp_path / "index", Limits(**TOO_SHORT)).add([replace(row, reason="Timeout", **TOO_SHORT)])
    for seconds, wanted in ((1e-6, []), (1e-7, []), (1.0, [as_video(video)])):
        limits = Limits(timeout_seconds=seconds, memory_mib=4096)
        assert VideoIndex(tmp_path / "index", limits).missing([as_video(video)]) == wanted


@pytest.mark.parametrize("reason", [*TRANSIENT, "Truncated"])
def test_what_was_killed_is_tried_once_more_and_nothing_else_is(reason):
    results = iter([VideoError(reason, "first"), "second"])

    def call() -> str:
        if isinstance(result := next(results), VideoError):
            raise result
        return result

    if reason in KILLED:
        assert try_twice(call) == "second"
        return
    with pytest.raises(VideoError, match="first") as caught:
        try_twice(call)
    assert (caught.value.attempts, next(results)) == (1, "second")


def test_scanning_and_sharding_try_what_timed_out_twice_and_their_rejects_say_so(tmp_path, video):
    os.truncate(video, 64 << 20)  # so that it cannot be hashed in time
    (row,) = VideoScanner(**TOO_SHORT)([as_video(video)])
    assert (row.reason, row.attempts) == ("Timeout", 2)
    item = VideoItem(path=video, label="a", split="train")
    _, (scanned,) = choose_clips([item], Scans.of([row]), mode="uniform", num_frames=4, fps=4.0, stride_seconds=1.0)
    entry = ShardBuilder(directory=tmp_path / "shards", **TOO_SHORT, **ENCODING)(unit_of([video], "a.tar"))
    assert (scanned.attempts, [reject["attempts"] for reject in entry.rejects]) == (2, [2])


@pytest.mark.parametrize("reason", [*TRANSIENT, "Truncated", ""])
def test_permissions_matter_to_what_could_not_be_read_and_to_nothing_else(tmp_path, video, reason):
    (row,) = VideoScanner(**LIMITS)([as_video(video)])
    index = index_of(tmp_path, [replace(row, reason=reason)])
    assert index.missing([as_video(video)]) == []
    video.chmod(0o600)
    assert index.missing([as_video(video)]) == ([as_video(video)] if reason in TRANSIENT else [])


def test_a_file_that_could_not_be_reached_is_scanned_when_it_can(tmp_path, video):
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    rows = VideoScanner(**LIMITS)([as_video(loop)])
    assert [row.reason for row in rows] == ["Unreadable"]
    index = index_of(tmp_path, rows)
    assert index.missing([as_video(loop)]) == []
    loop.unlink()
    loop.symlink_to(video)
    assert index.missing([as_video(loop)]) == [as_video(loop)]


def test_what_is_forgotten_is_scanned_again_and_the_rest_is_not(tmp_path, video):
    loop, text = tmp_path / "loop.mp4", tmp_path / "text.mp4"
    loop.symlink_to(loop)
    text.write_text("no video")
    inputs = [as_video(path) for path in (video, loop, text)]
    index = index_of(tmp_path, VideoScanner(**LIMITS)(inputs))
    assert index.missing(inputs) == []
    assert index.forget_transient(inputs) == [as_video(loop)]
    assert index.missing(inputs) == [as_video(loop)]
    assert VideoIndex(tmp_path / "index", Limits(**LIMITS)).missing(inputs) == [as_video(loop)]


def test_a_shard_knows_when_the_clip_it_left_out_is_due(tmp_path, video):
    unit = unit_of([video], "a.tar")
    entry = ShardBuilder(directory=tmp_path / "shards", **TOO_SHORT, **ENCODING)(unit)
    assert [row["reason"] for row in entry.rejects] == ["Timeout"]
    entry = committed_entry(tmp_path / "shards", "a.tar")
    assert not is_due(entry, Limits(**TOO_SHORT))
    assert is_due(entry, Limits(**LIMITS))
    video.chmod(0o600)
    assert is_due(entry, Limits(**TOO_SHORT))
    assert not is_due(ShardBuilder(directory=tmp_path / "shards", **LIMITS, **ENCODING)(unit), Limits(**LIMITS))


def test_bytes_that_changed_since_the_scan_never_carry_its_digest(tmp_path, video):
    unit = unit_of([video], "a.tar")
    write_h264(video, np.full((6, 32, 32, 3), 99, np.uint8), fps=10)
    builder = ShardBuilder(directory=tmp_path / "shards", **LIMITS, **ENCODING)
    entry = builder(unit)
    assert [row["reason"] for row in entry.rejects] == ["Changed"]
    video.unlink()
    assert [row["reason"] for row in builder(unit).rejects] == ["Changed"]
    assert is_due(entry, Limits(**LIMITS))


def test_final_rejects_name_no_edition():
    assert edition_of([Reject(key="k", path="", stage="shard", reason="Corrupt", message="")]) == ""


def test_a_file_whose_disk_fails_in_the_middle_is_a_reject(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.symlink_to("/proc/self/mem")  # a regular file, and reading its first byte gives EIO
    (row,) = VideoScanner(**LIMITS)([as_video(broken)])
    assert row.reason == "Unreadable"
    assert "Input/output error" in row.message
