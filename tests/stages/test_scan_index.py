"""The index of scans: many parts become one, whatever moment a kill or a reader comes, and folders may move."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vidflow.files import file_state
from vidflow.stages.scan import ScanInput, ScannedVideo
from vidflow.stages.scan_index import VideoIndex
from vidflow.stages.transient import Limits

LIMITS = Limits(timeout_seconds=60.0, memory_mib=1024)


def scan(path: Path, sha256: str = "a") -> ScannedVideo:
    state = file_state(path)
    return ScannedVideo(
        path=str(path), is_video=True, sha256=sha256, **state._asdict(), timeout_seconds=60.0, memory_mib=1024
    )


def make_videos(folder: Path, number: int = 3) -> list[Path]:
    (folder / "class").mkdir(parents=True)
    paths = [folder / "class" / f"{name}.mp4" for name in range(number)]
    for path in paths:
        path.write_bytes(b"video")
    return paths


def inputs_of(paths: list[Path]) -> list[ScanInput]:
    return [ScanInput(str(path), is_video=True) for path in paths]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[Path], VideoIndex]:
    """An index of several parts, one of which has newer scans than an earlier one."""
    paths = make_videos(tmp_path / "videos")
    index = VideoIndex(tmp_path / "index", LIMITS, [tmp_path / "videos"])
    for path in paths:
        index.add([scan(path)])
    index.add([scan(paths[0], "newer")])
    return tmp_path / "index", paths, index


def digests(directory: Path, paths: list[Path]) -> list[str]:
    index = VideoIndex(directory, LIMITS)
    assert index.missing(inputs_of(paths)) == []
    return [index[each].sha256 for each in inputs_of(paths)]


def test_parts_become_one_that_has_the_newest_scan_of_each_file(made):
    directory, paths, index = made
    index.compact()
    assert len(list(directory.iterdir())) == 2, "one part and its digest"
    assert digests(directory, paths) == ["newer", "a", "a"]
    index.add([scan(paths[1], "after")])
    assert digests(directory, paths) == ["newer", "after", "a"]
    VideoIndex(directory, LIMITS).compact()
    assert digests(directory, paths) == ["newer", "after", "a"]


def test_a_kill_at_any_moment_of_it_loses_no_scan(made, tmp_path):
    directory, paths, index = made
    shutil.copytree(directory, tmp_path / "before")
    index.compact()
    after = sorted(directory.iterdir())
    before = sorted((tmp_path / "before").iterdir())
    for removed in range(len(before) + 1):
        halfway = tmp_path / f"halfway{removed}"
        halfway.mkdir()
        for file in [*after, *before[removed:]]:
            shutil.copy(file, halfway)
        # A killed writer leaves its temporary file too.
        (halfway / ".part.parquet.00.tmp").write_bytes(b"")
        assert digests(halfway, paths) == ["newer", "a", "a"]
        again = VideoIndex(halfway, LIMITS)
        again.compact()
        assert digests(halfway, paths) == ["newer", "a", "a"]


def test_a_reader_that_listed_the_parts_before_they_became_one_finds_every_scan(made, monkeypatch):
    directory, paths, index = made
    list_parts = VideoIndex._list_parts

    def list_then_compact(self: VideoIndex) -> list[Path]:
        parts = list_parts(self)
        monkeypatch.undo()
        index.compact()  # as another process does it now
        return parts

    monkeypatch.setattr(VideoIndex, "_list_parts", list_then_compact)
    assert digests(directory, paths) == ["newer", "a", "a"]


def test_videos_that_moved_with_their_folder_are_not_scanned_again(made, tmp_path):
    directory, paths, _ = made
    (tmp_path / "videos").rename(tmp_path / "moved")
    moved = [tmp_path / "moved" / path.relative_to(tmp_path / "videos") for path in paths]
    index = VideoIndex(directory, LIMITS, [tmp_path / "moved"])
    assert index.missing(inputs_of(moved)) == []
    assert [index[each].sha256 for each in inputs_of(moved)] == ["newer", "a", "a"]
    index.compact()
    assert VideoIndex(directory, LIMITS).missing(inputs_of(moved)) == [], "they are known by their new paths"


def test_a_copy_beside_the_old_file_and_another_size_or_time_are_scanned(made, tmp_path):
    directory, paths, _ = made
    shutil.copytree(tmp_path / "videos", tmp_path / "copy")  # with the times of the originals
    copies = [tmp_path / "copy" / path.relative_to(tmp_path / "videos") for path in paths]
    assert VideoIndex(directory, LIMITS, [tmp_path / "copy"]).missing(inputs_of(copies)) == inputs_of(copies)
    shutil.rmtree(tmp_path / "videos")
    copies[0].write_bytes(b"longer video")
    os.utime(copies[1], ns=(1, 1))
    assert VideoIndex(directory, LIMITS, [tmp_path / "copy"]).missing(inputs_of(copies)) == inputs_of(copies[:2])


def test_a_failure_that_may_go_away_does_not_move_with_its_folder(tmp_path):
    (path,) = make_videos(tmp_path / "videos", 1)
    index = VideoIndex(tmp_path / "index", LIMITS, [tmp_path / "videos"])
    index.add([replace(scan(path), reason="Timeout")])
    (tmp_path / "videos").rename(tmp_path / "moved")
    moved = inputs_of([tmp_path / "moved" / "class" / "0.mp4"])
    assert VideoIndex(tmp_path / "index", LIMITS, [tmp_path / "moved"]).missing(moved) == moved
