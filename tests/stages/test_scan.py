from pathlib import Path

from vidflow.stages.scan import ScannedVideo, VideoIndex


def test_a_damaged_part_of_the_index_is_left_out_and_said_so_its_videos_are_scanned_again(tmp_path, caplog):
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    index = VideoIndex(tmp_path / "index")
    for video in videos:
        video.write_bytes(b"video")
        status = video.stat()
        index.add([ScannedVideo(path=str(video), num_bytes=status.st_size, modified_ns=status.st_mtime_ns, sha256="1")])
    paths = [str(video) for video in videos]
    assert VideoIndex(tmp_path / "index").missing(paths) == []
    part: Path = min((tmp_path / "index").glob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for _ in range(2):
        assert VideoIndex(tmp_path / "index").missing(paths) == paths[:1]
    assert len(caplog.messages) == 1
    assert f"{part}: its bytes are not those that were written" in caplog.text
