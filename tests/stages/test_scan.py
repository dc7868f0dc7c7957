from pathlib import Path

from vidflow.stages.scan import VideoIndex, VideoScanner
from vidflow.stages.transient import Limits

LIMITS = Limits(timeout_seconds=60.0, memory_mib=1024)


def test_a_damaged_part_of_the_index_is_left_out_and_said_so_its_videos_are_scanned_again(tmp_path, caplog):
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    index = VideoIndex(tmp_path / "index", LIMITS)
    for video in videos:
        video.write_bytes(b"video")
        index.add(VideoScanner(timeout_seconds=60.0, memory_mib=1024)([str(video)]))
    paths = [str(video) for video in videos]
    assert VideoIndex(tmp_path / "index", LIMITS).missing(paths) == []
    part: Path = min((tmp_path / "index").glob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for _ in range(2):
        assert VideoIndex(tmp_path / "index", LIMITS).missing(paths) == paths[:1]
    assert len(caplog.messages) == 1
    assert f"{part}: its bytes are not those that were written" in caplog.text
