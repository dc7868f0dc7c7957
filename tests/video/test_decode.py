"""Clips: decord and PyAV give the same frames, or the rule hands the video to PyAV."""

from fractions import Fraction

import numpy as np
import pytest
from clip_factory import (
    damage,
    mux,
    mux_open_groups,
    mux_vp9,
    numbered_frame,
    numbered_frames,
    read_number,
    write_gif,
)
from PIL import Image

from vidflow.errors import VideoError
from vidflow.video.decode import crop_square, decode_clip
from vidflow.video.ffmpeg import probe, write_h264

decord = pytest.importorskip("decord", reason="decord has no build for this machine")

NUM_FRAMES = 120


def _clip(path, indices, *, decoder="decord", size=64, resize_filter="bicubic"):
    info = probe(path)
    return decode_clip(path, info, np.array(indices), decoder=decoder, size=size, resize_filter=resize_filter)


def _numbers(path, indices, **keywords):
    """The numbers read from the frames, decoded at a size that keeps every code block of a square video."""
    return [read_number(frame) for frame in _clip(path, indices, **keywords).frames]


def _square(num_frames=NUM_FRAMES):
    return numbered_frames(num_frames, height=128, width=128)


def _write_variable(path):
    pts = np.cumsum(np.random.default_rng(0).integers(1, 6, NUM_FRAMES)).tolist()
    write_h264(path, _square(), fps=25, pts=pts, time_base=Fraction(1, 50))
    return path


def _write_late(path):
    write_h264(path, _square(), fps=25, pts=range(100, 100 + NUM_FRAMES))
    return path


def _write_plain(path):
    write_h264(path, _square(), fps=25, gop=30, num_b_frames=0)
    return path


FOR_DECORD = {
    "B-frames": lambda folder: mux(folder / "a.mp4", frames=_square(), gop=30),
    "no B-frames": lambda folder: _write_plain(folder / "a.mp4"),
    "variable rate": lambda folder: _write_variable(folder / "a.mp4"),
    "late start": lambda folder: _write_late(folder / "a.mp4"),
    "matroska": lambda folder: mux(folder / "a.mkv", frames=_square(), gop=30),
    "full range": lambda folder: mux(folder / "a.mp4", frames=_square(), pixel_format="yuvj420p"),
    "one keyframe": lambda folder: mux(folder / "a.mp4", frames=_square(), gop=250),
}

FOR_PYAV = {
    "rotated": lambda folder: mux(folder / "a.mp4", frames=(np.rot90(f, -1) for f in _square()), rotation=90),
    "10 bits": lambda folder: mux(folder / "a.mp4", frames=_square(), pixel_format="yuv420p10le"),
    "4:4:4": lambda folder: mux(folder / "a.mp4", frames=_square(), pixel_format="yuv444p"),
    "open groups": lambda folder: mux_open_groups(folder / "a.mp4", NUM_FRAMES),
    "open groups in matroska": lambda folder: mux_open_groups(folder / "a.mkv", NUM_FRAMES),
    "MPEG-4 part 2 with B-frames": lambda folder: mux(folder / "a.mp4", "mpeg4", frames=_square()),
    "avi with B-frames": lambda folder: mux(folder / "a.avi", "mpeg4", frames=_square()),
    "avi without B-frames": lambda folder: mux(
        folder / "a.avi", "mjpeg", frames=_square(), pixel_format="yuvj420p", codec_options={}
    ),
    "gif": lambda folder: write_gif(folder / "a.gif", NUM_FRAMES),
}

WANTED = ([0], [NUM_FRAMES - 1], [3, 29, 30, 31, 90], [61, 60, 61, 5], list(range(0, NUM_FRAMES, 8)))


@pytest.mark.parametrize("kind", FOR_DECORD)
def test_decord_and_pyav_give_the_same_frames(tmp_path, kind):
    path = FOR_DECORD[kind](tmp_path)
    for wanted in WANTED:
        ours, exact = _clip(path, wanted), _clip(path, wanted, decoder="pyav")
        assert ours.decoder == f"decord {decord.__version__}"
        assert exact.decoder.startswith("pyav")
        # Two builds of the same conversion: even sides in 8-bit 4:2:0 leave nothing to round differently.
        np.testing.assert_array_equal(ours.frames, exact.frames)
        assert [read_number(frame) for frame in ours.frames] == wanted
        np.testing.assert_array_equal(ours.pts_seconds, probe(path).pts_seconds[wanted])


@pytest.mark.parametrize("kind", FOR_PYAV)
def test_what_decord_would_get_wrong_goes_to_pyav(tmp_path, kind):
    path = FOR_PYAV[kind](tmp_path)
    wanted = list(range(0, NUM_FRAMES, 7))
    clip = _clip(path, wanted, size=64)
    assert clip.decoder.startswith("pyav")
    if clip.source_height == clip.source_width:
        assert [read_number(frame) for frame in clip.frames] == wanted


def test_decord_alone_miscounts_after_seeking_into_open_groups(tmp_path):
    # The reason for the rule above; if this fails, decord has learned to count and the rule can go.
    path = mux_open_groups(tmp_path / "a.mp4", NUM_FRAMES)
    wanted = [28, 29, 31, 59, 60, 61, 89, 91]
    frames = decord.VideoReader(str(path), num_threads=1).get_batch(wanted).asnumpy()
    assert [read_number(frame) for frame in frames] != wanted


def test_frames_hidden_by_an_edit_list_are_not_counted_by_either(tmp_path):
    path = mux(tmp_path / "a.mp4", frames=_square(12), first_tick=-3)
    assert _numbers(path, range(9)) == _numbers(path, range(9), decoder="pyav") == list(range(3, 12))


def test_vp9_is_the_same_by_both(tmp_path):
    path = mux_vp9(tmp_path / "a.webm", 40)
    np.testing.assert_array_equal(_clip(path, [0, 39]).frames, _clip(path, [0, 39], decoder="pyav").frames)


def test_a_video_of_one_frame_makes_a_clip_of_repeats(tmp_path):
    clip = _clip(mux(tmp_path / "a.mp4", frames=numbered_frames(1)), [0] * 8)
    assert clip.frames.shape == (8, 64, 64, 3)
    assert (clip.frames == clip.frames[0]).all()
    assert clip.pts_seconds.tolist() == [0.0] * 8


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_damaged_frame_is_an_error_whoever_decodes(tmp_path, decoder):
    path = damage(mux(tmp_path / "a.mp4", frames=numbered_frames(60), gop=30), packet=30)
    with pytest.raises(VideoError) as caught:
        _clip(path, range(60), decoder=decoder)
    assert caught.value.reason == "DecodeError"


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (96, 96), (66, 98)])
def test_the_clip_is_square_and_says_how_large_the_video_was(tmp_path, height, width):
    path = mux(tmp_path / "a.mp4", frames=numbered_frames(3, height=height, width=width))
    clip = _clip(path, [0, 2], size=48)
    assert clip.frames.shape == (2, 48, 48, 3)
    assert (clip.source_height, clip.source_width) == (height, width)


# --- resizing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos", "box"])
@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (96, 192)])
def test_one_step_equals_resizing_and_then_cropping(resize_filter, height, width):
    # Of low contrast: Pillow cuts overshoots between its two passes, whose order the crop may change.
    frame = numbered_frame(77, height=height, width=width) // 2 + 64
    size = 32
    scale = size / min(height, width)
    resized = Image.fromarray(frame).resize(
        (round(width * scale), round(height * scale)), Image.Resampling[resize_filter.upper()]
    )
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    # Rounding between the passes is worth one level.
    assert np.abs(crop_square(frame, size, resize_filter).astype(int) - expected).max() <= 1


def test_the_box_filter_is_the_mean_over_every_block():
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    blocks = frame[:, 10:50].reshape(10, 4, 10, 4, 3).mean(axis=(1, 3))
    assert np.abs(crop_square(frame, 10, "box") - blocks).max() <= 1.0  # two passes, each rounds to whole levels


@pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos", "box"])
def test_a_frame_of_the_right_size_and_a_flat_one_pass_unchanged(resize_filter):
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_square(frame, 32, resize_filter), frame)
    flat = np.full((50, 70, 3), 93, np.uint8)
    assert (crop_square(flat, 24, resize_filter) == 93).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(crop_square(stripes, 16, "bilinear").astype(int) - 128).max() < 24  # picking pixels gives 0 or 255


def test_real_clips_are_the_same_by_decord_and_pyav(shared_dir):
    for name in ("realshort.mp4", "balance_cam02.mp4"):
        path = shared_dir / "data" / "clips" / name
        ours, exact = _clip(path, [0, 7, 30]), _clip(path, [0, 7, 30], decoder="pyav")
        assert ours.decoder.startswith("decord")
        np.testing.assert_array_equal(ours.frames, exact.frames)
