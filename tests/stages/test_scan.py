"""Scans: what is known of a file, by what its row names it, and for how long."""

from pathlib import Path

import numpy as np

from vidflow.stages.scan import ScanInput, VideoScanner
from vidflow.stages.scan_index import VideoIndex
from vidflow.stages.transient import Limits
from vidflow.video.ffmpeg import write_h264

LIMITS = Limits(timeout_seconds=60.0, memory_mib=1024)


def test_a_damaged_part_of_the_index_is_left_out_and_said_so_its_videos_are_scanned_again(tmp_path, caplog):
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    inputs = [ScanInput(str(video), is_video=True) for video in videos]
    index = VideoIndex(tmp_path / "index", LIMITS)
    for video, scanned in zip(videos, inputs, strict=True):
        video.write_bytes(b"video")
        index.add(VideoScanner(timeout_seconds=60.0, memory_mib=1024)([scanned]))
    assert VideoIndex(tmp_path / "index", LIMITS).missing(inputs) == []
    part: Path = min((tmp_path / "index").glob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for _ in range(2):
        assert VideoIndex(tmp_path / "index", LIMITS).missing(inputs) == inputs[:1]
    assert len(caplog.messages) == 1
    assert f"{part}: its bytes are not those that were written" in caplog.text


def test_a_file_is_scanned_as_what_its_row_names_it_whatever_its_suffix(tmp_path):
    truth, video = tmp_path / "gt.NPZ", tmp_path / "video.npz"
    truth.write_bytes(b"arrays")
    write_h264(video, np.zeros((6, 32, 32, 3), np.uint8), fps=10)
    as_video, as_truth = ([ScanInput(str(path), is_video=kind) for path in (truth, video)] for kind in (True, False))
    scan = VideoScanner(timeout_seconds=60.0, memory_mib=1024)
    VideoIndex(tmp_path / "index", LIMITS).add(scan(as_truth))
    assert VideoIndex(tmp_path / "index", LIMITS).missing(as_video + as_truth) == as_video
    VideoIndex(tmp_path / "index", LIMITS).add(scan(as_video))
    index = VideoIndex(tmp_path / "index", LIMITS)
    assert index.missing(as_video + as_truth) == []
    assert [(index[each].reason, index[each].num_frames) for each in as_truth] == [("", 0)] * 2
    assert [(index[each].reason, index[each].num_frames) for each in as_video] == [("NotAVideo", 0), ("", 6)]
