"""Probing, exact decoding and reproducible writing through PyAV."""

import os
from fractions import Fraction

import numpy as np
import pytest
from clip_factory import (
    BAD_VIDEOS,
    damage,
    mux,
    mux_open_groups,
    mux_vp9,
    numbered_frame,
    numbered_frames,
    read_number,
    write_gif,
)

from vidflow.errors import VideoError
from vidflow.video.ffmpeg import decode, probe, write_h264
from vidflow.video.ffmpeg.bitstream import AccessTest

# --- writing -----------------------------------------------------------------------------------------------------


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write_h264(tmp_path / name, numbered_frames(20), fps=20)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_the_index_comes_before_the_frames(tmp_path):
    write_h264(tmp_path / "clip.mp4", numbered_frames(5), fps=20)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_written_frames_come_back_in_order_and_nearly_unchanged(tmp_path):
    path = tmp_path / "clip.mp4"
    write_h264(path, numbered_frames(30), fps=20)
    info = probe(path)
    assert info.pts_seconds == pytest.approx(np.arange(30) / 20)
    assert (info.codec, info.pixel_format, info.width, info.height) == ("h264", "yuv420p", 128, 64)
    for index, frame in decode(path, info, range(30)):
        # Quantization at CRF 18 and halved chroma cost a few levels of 255 on smooth content.
        assert np.abs(frame.astype(int) - numbered_frame(index)).mean() < 4


@pytest.mark.parametrize(
    ("frames", "pts", "message"),
    [
        ([], None, "no frames"),
        ([np.zeros((63, 64, 3), np.uint8)], None, "even"),
        ([np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)], None, "wanted \\(64, 64, 3\\)"),
        ([np.zeros((64, 64, 3), np.uint8)] * 3, [0, 1], "shorter"),
        ([np.zeros((64, 64, 3), np.uint8)], [-1], "tick >= 0"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, frames, pts, message):
    with pytest.raises(ValueError, match=message):
        write_h264(tmp_path / "clip.mp4", frames, fps=20, pts=pts)


# --- probing -----------------------------------------------------------------------------------------------------


def test_frame_times_are_those_written_at_a_variable_rate_and_a_late_start(tmp_path):
    path, pts = tmp_path / "clip.mp4", [30, 31, 33, 34, 38, 39, 40, 50, 51, 52]
    write_h264(path, numbered_frames(10), fps=20, pts=pts, time_base=Fraction(1, 20))
    info = probe(path)
    assert info.pts_seconds == pytest.approx(np.array(pts) / 20, abs=1e-9)
    assert 52 / 20 < info.duration_seconds <= 53 / 20
    assert info.fps == pytest.approx(10 / (info.duration_seconds - 1.5))


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    path = mux(tmp_path / "clip.mp4", frames=numbered_frames(12), first_tick=-3)
    info = probe(path)
    assert info.pts_seconds == pytest.approx(np.arange(9) / 25)
    assert [read_number(frame) for _, frame in decode(path, info, range(9))] == list(range(3, 12))


def test_a_video_of_one_frame_has_a_duration(tmp_path):
    info = probe(mux(tmp_path / "one.mp4", frames=numbered_frames(1)))
    assert info.pts_seconds.tolist() == [0.0]
    assert info.duration_seconds == pytest.approx(1 / 25)
    assert info.fps == pytest.approx(25)


def test_audio_longer_than_the_picture_is_no_truncation(tmp_path):
    for name in ("clip.mp4", "clip.mkv"):
        assert len(probe(mux(tmp_path / name, frames=numbered_frames(10), audio=True)).pts_seconds) == 10


def test_a_file_with_spaces_and_unicode_in_its_name_is_read(tmp_path):
    path = mux(tmp_path / "a clip: größe 動画 100%.mp4", frames=numbered_frames(3))
    assert len(probe(path).pts_seconds) == 3


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_a_bad_file_is_refused_with_its_reason_and_path(tmp_path, kind, capfd):
    reason, make = BAD_VIDEOS[kind]
    path = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")  # FFmpeg keeps quiet


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_unreadable(tmp_path):
    path = mux(tmp_path / "clip.mp4", frames=numbered_frames(3))
    path.chmod(0)
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == "Unreadable"


def test_a_playlist_in_disguise_cannot_reach_the_network(tmp_path):
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        probe(path)


# --- decoding ----------------------------------------------------------------------------------------------------

CONTAINERS = {
    "mp4": "libx264",
    "mov": "mpeg4",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "ts": "libx264",
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_frame_is_found_by_its_index_in_any_order_and_after_seeks(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    if suffix == "webm":
        mux_vp9(path, 200, gop=30)
    else:
        mux(path, CONTAINERS[suffix], frames=numbered_frames(200), gop=30)
    info = probe(path)
    assert len(info.pts_seconds) == 200
    assert np.diff(info.pts_seconds) == pytest.approx(1 / 25, abs=1e-3)  # Matroska counts milliseconds
    for wanted in ([0], [199], [3, 198], [60, 59, 59], [0, 61, 119, 180, 199], list(range(200))):
        found = {index: read_number(frame) for index, frame in decode(path, info, wanted)}
        assert found == {index: index for index in wanted}


def test_frames_before_a_keyframe_in_display_but_after_it_in_coding_order_are_found(tmp_path):
    # Of open groups, where a seek lands too late for them.
    path = mux_open_groups(tmp_path / "open.mp4", 250)
    info = probe(path)
    for index in range(110, 155):
        assert [read_number(frame) for _, frame in decode(path, info, [index])] == [index]


def test_a_gif_is_decoded(tmp_path):
    path = write_gif(tmp_path / "clip.gif", 12)
    info = probe(path)
    assert info.codec == "gif"
    assert [read_number(frame) for _, frame in decode(path, info, range(12))] == list(range(12))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_video_comes_out_upright(tmp_path, suffix, rotation):
    upright = [numbered_frame(number) for number in range(5)]
    stored = [np.rot90(frame, -rotation // 90) for frame in upright]
    path = mux(tmp_path / f"clip.{suffix}", frames=stored, rotation=rotation)
    info = probe(path)
    assert (info.rotation_degrees, info.width, info.height) == (rotation, 128, 64)
    for index, frame in decode(path, info, range(5)):
        assert frame.shape == (64, 128, 3)
        assert read_number(frame) == index


@pytest.mark.parametrize(
    ("pixel_format", "height", "width"),
    [("yuv420p10le", 64, 128), ("yuv444p", 63, 127), ("yuv422p", 64, 128), ("yuvj420p", 64, 128)],
)
def test_any_pixel_format_becomes_eight_bit_colour(tmp_path, pixel_format, height, width):
    frames = [numbered_frame(number, height=height, width=width) for number in range(4)]
    path = mux(tmp_path / "clip.mp4", frames=frames, pixel_format=pixel_format)
    info = probe(path)
    assert info.pixel_format == pixel_format
    for index, frame in decode(path, info, range(4)):
        assert (frame.shape, frame.dtype) == ((height, width, 3), np.uint8)
        assert read_number(frame) == index


def test_damage_inside_the_frames_is_an_error_where_a_damaged_frame_is_wanted(tmp_path):
    path = damage(mux(tmp_path / "clip.mp4", frames=numbered_frames(60), gop=30), packet=30)
    info = probe(path)
    assert len(info.pts_seconds) == 60  # the container is whole
    assert len(dict(decode(path, info, range(10)))) == 10
    with pytest.raises(VideoError) as caught:
        list(decode(path, info, range(60)))
    assert caught.value.reason == "DecodeError"


@pytest.mark.parametrize(
    ("head", "is_key"),
    [(0b10000000, True), (0b10000100, False), (0b10001000, False), (0b10110000, True), (0b10110010, False)],
)
def test_vp9_says_in_every_profile_which_pictures_are_keys(head, is_key):
    # Marker 10, profile (low bit first), in profile 3 a reserved bit, shown again, type: VP9 bitstream, section 6.2.
    assert AccessTest("vp9", None)(memoryview(bytes([head, 0, 0]))) is is_key


def test_real_clips_are_probed_and_decoded(shared_dir):
    expected = {
        "balance_cam02.mp4": ("vp9", 1080, 1920, 100),
        "cockatoo.mp4": ("h264", 1280, 720, 280),
        "newtonscradle.gif": ("gif", 200, 150, 36),
        "realshort.mp4": ("h264", 320, 240, 36),
    }
    for name, (codec, width, height, num_frames) in expected.items():
        path = shared_dir / "data" / "clips" / name
        info = probe(path)
        assert (info.codec, info.width, info.height, len(info.pts_seconds)) == (codec, width, height, num_frames)
        shapes = {frame.shape for _, frame in decode(path, info, [0, num_frames // 4])}
        assert shapes == {(height, width, 3)}
