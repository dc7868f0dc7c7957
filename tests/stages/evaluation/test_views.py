"""Which clips and squares a protocol shows."""

from dataclasses import replace

import numpy as np
import pytest

from vidflow.config.fingerprints import clip_settings
from vidflow.config.schema import Config, Evaluate, Sampling, Video, VideoModel
from vidflow.errors import ConfigError
from vidflow.models.encoder.video.outline import classifier_outline
from vidflow.stages.evaluation.points import recipe_of
from vidflow.stages.evaluation.views import count_padded, list_views, published_pixels
from vidflow.video.decode import crop_square
from vidflow.video.sampling import first_times, frames_at, segment_times, spread_times


def views(family, fps=None, **settings):
    model = VideoModel(family=family, weights="random:0", fps=fps)
    config = Config(evaluate=Evaluate(models={"m": model}, **settings))
    return list_views(config, "m", classifier_outline(recipe_of(config, "m")).geometry)


def test_the_clip_is_that_of_the_model_whatever_the_config_says_of_other_clips():
    (view,) = views("vivit")
    assert view.config.video.sampling == Sampling(mode="spread", num_frames=32, fps=15.0)
    assert (view.config.video.size, view.config.video.is_central, view.config.video.splits) == (224, True, ["val"])


def test_multiview_is_clips_times_squares_and_models_of_whole_videos_see_one_clip():
    seen = views("videomae", protocol="multiview", num_clips=5)
    assert [view.config.video.crop for view in seen] == ["left", "center", "right"]
    assert {view.config.video.sampling.num_clips for view in seen} == {5}
    (whole,) = views("videomae", fps="uniform", protocol="multiview", three_crops=False)
    assert whole.config.video.sampling == Sampling(mode="uniform", num_frames=16)


@pytest.mark.parametrize(
    ("family", "last"), [("vivit", 63), ("videomae", 15), ("timesformer", 255), ("motionformer", 63)]
)
def test_the_papers_clip_starts_with_the_first_frame_and_ends_where_its_loader_ends(family, last):
    (view,) = views(family, protocol="paper", data_set="k400")
    sampling, pts = view.config.video.sampling, np.arange(300) / 30
    frames = frames_at(pts, first_times(0.0, 10.0, num_frames=sampling.num_frames, fps=sampling.fps))
    wanted = np.linspace(0, last, sampling.num_frames).astype(int)
    assert (frames == wanted).all()
    assert (view.config.video.short_side, view.config.video.size) == (256, 224)


def test_the_papers_left_square_and_segments_are_those_of_something_something():
    (view,) = views("timesformer", protocol="paper", data_set="ssv2")
    assert (view.config.video.crop, view.config.video.short_side) == ("left", None)
    assert view.config.video.sampling == Sampling(mode="segments", num_frames=8)


def test_a_protocol_that_is_not_published_is_refused():
    with pytest.raises(ConfigError, match="the paper does not run"):
        views("vjepa2", protocol="paper", data_set="k400")
    with pytest.raises(ConfigError, match=r"set evaluate\.data_set"):
        views("vivit", protocol="paper")


def test_the_papers_pixels_of_vivit_are_not_its_own():
    model = VideoModel(family="vivit", weights="random:0")
    for protocol, ends in (("centre", (-1.0, 1.0)), ("paper", (-2.0, 0.55 / 0.225))):
        config = Config(evaluate=Evaluate(models={"m": model}, protocol=protocol, data_set="k400"))
        pixels = published_pixels(config, "m", classifier_outline(recipe_of(config, "m")).geometry)
        low, high = pixels.input_range
        shown = [(low + (high - low) * level - pixels.mean[0]) / pixels.std[0] for level in (0, 1)]
        assert shown == pytest.approx(ends)


@pytest.mark.parametrize("num_shown", [5, 16, 37, 250])
def test_segments_are_counted_in_frames_as_published(num_shown):
    num_frames = 8
    times = segment_times(2.0, 2.0 + num_shown / 25, num_frames=num_frames, frame_seconds=1 / 25)
    size = (num_shown - 1) / num_frames
    wanted = [(round(size * i) + round(size * (i + 1))) // 2 for i in range(num_frames)]
    assert frames_at(2.0 + np.arange(num_shown) / 25, times).tolist() == wanted


def test_windows_are_spread_from_start_to_end_and_one_is_in_the_middle():
    first, middle, last = spread_times(0.0, 10.0, num_frames=4, fps=2.0, num_clips=3)
    assert (first[0], middle.mean(), last[-1]) == (0.25, 5.0, 9.75)
    (alone,) = spread_times(0.0, 10.0, num_frames=4, fps=2.0, num_clips=1)
    assert (alone == middle).all()


def test_a_short_video_repeats_its_last_frame_and_is_counted():
    (short,) = spread_times(0.0, 1.0, num_frames=4, fps=2.0, num_clips=1)
    assert frames_at(np.arange(10) / 10, short).tolist() == [2, 7, 9, 9]
    assert count_padded([short.tolist(), spread_times(0.0, 9.0, num_frames=4, fps=2.0, num_clips=1)[0].tolist()]) == 1


def test_squares_lie_left_in_the_middle_and_right_and_above_and_below():
    wide = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    ends = {
        crop: crop_square(wide, 100, "box", crop=crop)[0, [0, -1], 0].tolist() for crop in ("left", "center", "right")
    }
    assert ends == {"left": [0, 99], "center": [50, 149], "right": [100, 199]}
    tall = np.swapaxes(wide, 0, 1)
    assert crop_square(tall, 100, "box", crop="left")[[0, -1], 0, 0].tolist() == [0, 99]
    smaller = crop_square(
        wide, 50, "box", short_side=100, crop="left"
    )  # at half the size: the middle of the short side
    assert smaller.shape == (50, 50, 3)
    assert smaller[0, [0, -1], 0].tolist() == [0, 49]


def test_clips_that_were_made_before_keep_their_address():
    assert clip_settings(Config()).keys() == {"decoder", "sampling", "size", "resize_filter"}
    assert "num_clips" not in clip_settings(Config())["sampling"]
    other = clip_settings(Config(video=replace(Video(), crop="left")))
    assert other["crop"] == "left"
