import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vidflow.errors import VidflowError
from vidflow.models.cores.build import build_core
from vidflow.models.encoder import build_encoder
from vidflow.models.tasks import TaskOptions, build_task
from vidflow.stages.predict import Square, VideoPredictor, rebuild_encoder
from vidflow.video.ffmpeg import write_h264

SAMPLING = {"mode": "windows", "num_frames": 4, "fps": 5.0, "stride_seconds": 2.0}
CLIP = {"decoder": "decord", "sampling": SAMPLING, "size": 48, "resize_filter": "bicubic"}


@pytest.fixture(scope="module")
def features():
    encoder = build_encoder(name="test_vit", weights="random:0", img_size=32, dtype="float32")
    return {"encoder": encoder.describe(), "clip": CLIP, "class_names": ["stay", "go"], "fps": 7.0}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """10 frames of noise, wider than high, 5 per second."""
    path = tmp_path_factory.mktemp("video") / "wide.mp4"
    write_h264(path, np.random.default_rng(0).integers(0, 256, (10, 64, 96, 3), dtype=np.uint8), fps=5)
    return str(path)


def make_task(name, **settings):
    torch.manual_seed(0)
    core = build_core("gru", embed_dim=64, num_layers=1, num_heads=2)
    return build_task(name, core, TaskOptions(num_classes=2, image_size=16, readout_dim=16, **settings)).eval()


@given(st.integers(8, 4000), st.integers(8, 4000), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_fractions_of_the_square_and_pixels_are_each_others_inverse(height, width, fractions):
    square = Square.of(np.empty((height, width, 3), np.uint8))
    corners = square.to_pixels(np.array([fractions]))
    np.testing.assert_allclose(square.to_fractions(corners), [fractions], atol=1e-9)
    assert (corners[:, 0::2] <= width).all()
    assert (corners[:, 1::2] <= height).all()
    assert (corners >= 0).all()


def test_the_square_is_the_centre():
    square = Square.of(np.empty((64, 96, 3), np.uint8))
    assert square.to_pixels(np.array([[0.0, 0.0, 1.0, 1.0]])).tolist() == [[16, 0, 80, 64]]


@pytest.mark.parametrize(
    ("name", "queries", "key"),
    [
        ("classification", [], "classes"),
        ("box_tracking", [[20, 8, 60, 40], [10, 0, 50, 64]], "boxes"),
        ("point_tracking", [[20, 8]], "points"),
        ("depth", [], "depth"),
        ("camera_pose", [], "camera_motion"),
    ],
)
def test_every_task_gives_one_row_per_frame(features, video, name, queries, key):
    frames = list(VideoPredictor(make_task(name), features).predict(video, queries=queries))
    assert [frame.row["index"] for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.row["pts_seconds"] for frame in frames], np.arange(10) / 5)
    assert all(frame.row.keys() == {"index", "pts_seconds", key} for frame in frames)
    assert frames[0].pixels.shape == (64, 96, 3)
    row = frames[1].row[key]
    if name == "classification":
        assert {entry["name"] for entry in row} == {"stay", "go"}
        assert sum(entry["probability"] for entry in row) == pytest.approx(1, abs=1e-5)
        assert row[0]["probability"] >= row[1]["probability"]
    elif name == "point_tracking":
        # At the frame where it is given, a point is known.
        assert (frames[0].row[key][0]["x"], frames[0].row[key][0]["y"]) == pytest.approx((20, 8), abs=0.01)
        assert frames[0].row[key][0]["visible"]
    elif name == "box_tracking":
        assert np.array(row).shape == (2, 4)
    elif name == "depth":
        assert frames[0].depth.shape == (16, 16)
        assert row["min_metres"] <= row["median_metres"] <= row["max_metres"]
    else:
        assert frames[0].row[key] is None
        rotation = np.array(row["rotation"])
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)


def test_the_rate_is_that_of_the_clips(features):
    task = make_task("classification")
    assert VideoPredictor(task, features).fps == 5.0
    uniform = {**features, "clip": {**CLIP, "sampling": {**SAMPLING, "mode": "uniform"}}}
    assert VideoPredictor(task, uniform).fps == 7.0
    assert VideoPredictor(task, {**uniform, "fps": None}).fps == 5.0


def test_max_frames_and_start_cut_the_video(features, video):
    predictor = VideoPredictor(make_task("classification"), features)
    whole = [frame.row for frame in predictor.predict(video)]
    predictor.model.reset()
    parts = [frame.row for frame in predictor.predict(video, max_frames=4)]
    parts += [frame.row for frame in predictor.predict(video, start_seconds=0.8)]
    assert parts == whole


@pytest.mark.parametrize(
    ("name", "queries", "complaint"),
    [
        ("classification", [[1, 2]], "follows neither boxes nor points"),
        ("box_tracking", [], "say which with --box x0,y0,x1,y1"),
        ("box_tracking", [[1, 2]], "say which with --box x0,y0,x1,y1"),
        ("point_tracking", [[1, 2, 3, 4]], "say which with --point x,y"),
        ("point_tracking", [[5, 5]], "got point 5,5; wanted one in the central square .* x from 16 to 80, y from 0 to"),
        ("box_tracking", [[0, 0, 15, 64]], "got box 0,0,15,64; wanted one in the central square"),
        ("box_tracking", [[50, 50, 40, 60]], "got box 50,50,40,60; wanted"),
    ],
)
def test_queries_that_make_no_sense_are_refused_with_what_to_do(features, video, name, queries, complaint):
    with pytest.raises(VidflowError, match=complaint):
        next(VideoPredictor(make_task(name), features).predict(video, queries=queries))


@pytest.mark.parametrize("standardize", [False, True])
def test_a_trial_whose_weights_are_not_finite_is_refused(features, standardize):
    task = make_task("classification", standardize=standardize)
    name = "token_scale.deviation" if standardize else next(iter(task.state_dict()))
    task.state_dict()[name].view(-1)[-1] = torch.nan
    with pytest.raises(VidflowError, match=f"the trial's weights hold NaN or infinite numbers in {name};"):
        VideoPredictor(task, features)


@pytest.mark.parametrize(
    ("name", "queries"),
    [("classification", []), ("box_tracking", [[20, 8, 60, 40]]), ("point_tracking", [[20, 8]]), ("depth", [])],
)
def test_a_prediction_that_is_not_finite_ends_with_its_frame_named(features, video, name, queries):
    task = make_task(name)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.fill_(3e38)  # finite, but no sum of two is
    predictor = VideoPredictor(task, features)
    with pytest.raises(VidflowError, match=r"frame \d at [\d.]+ s: its `\w+` holds NaN or infinite numbers"):
        list(predictor.predict(video, queries=queries))
    if name == "box_tracking":  # whose state is the box before
        with pytest.raises(VidflowError, match=r"the state holds NaN or infinite numbers in readout\.\d"):
            predictor.model.state_dict()


def test_other_weights_are_refused(features):
    description = features["encoder"]
    with pytest.raises(VidflowError, match=r"random:1: its weights of test_vit have digest .* --weights FILE"):
        rebuild_encoder({**description, "weights": "random:1"})


def test_weights_that_have_moved_are_found_by_the_name_given(features, tmp_path):
    encoder = rebuild_encoder(features["encoder"])
    save_file(encoder.vit.state_dict(), tmp_path / "here.safetensors")
    moved = {**features["encoder"], "weights": str(tmp_path / "gone.safetensors")}
    with pytest.raises(VidflowError, match=r"gone\.safetensors: no such file, wanted the weights of test_vit"):
        rebuild_encoder(moved)
    found = rebuild_encoder(moved, weights=str(tmp_path / "here.safetensors"))
    assert found.weights_sha256 == encoder.weights_sha256


def test_a_trial_that_does_not_know_its_features_is_refused():
    with pytest.raises(VidflowError, match="does not say of its features: encoder, clip"):
        VideoPredictor(make_task("classification"), {})


@pytest.mark.parametrize(
    "settings",
    [
        {"reducer": {"name": "dycoke"}},
        {"features": {"reducer": {"name": "fewer_frames"}}},
        {"reducer": {"name": "tome", "place": "post", "settings": {"keep": 0.5}}},
        {"reducer": {"name": "tome", "stage": "post", "settings": {"keep": 0.5}}},  # as older features say it
    ],
)
def test_reducers_that_look_at_whole_clips_are_refused(features, settings):
    with pytest.raises(VidflowError, match="looks at whole clips"):
        VideoPredictor(make_task("classification"), {**features, "settings": settings})


def test_a_reducer_of_an_older_version_of_extraction_is_refused(features):
    reducer = {"name": "tome", "place": None, "settings": {"num_merged": 1}}
    with pytest.raises(VidflowError, match=r"'tome' reduced in version 2 of extraction; this is version \d"):
        VideoPredictor(
            make_task("classification"), {**features, "settings": {"version": 2, "features": {"reducer": reducer}}}
        )
    # Without a reducer nothing was reduced otherwise.
    VideoPredictor(make_task("classification"), {**features, "settings": {"version": 2}})


def test_a_trial_on_reduced_tokens_as_stored_is_refused(features):
    settings = {"features": {"reducer": {"name": "tome", "place": None, "settings": {"num_merged": 1}}}}
    task = make_task("classification", unmerge=False)
    with pytest.raises(VidflowError, match="unmerge: true"):
        VideoPredictor(task, {**features, "settings": settings})


def test_a_reducer_inside_the_encoder_is_built_again(features, video):
    settings = {"features": {"reducer": {"name": "tome", "place": None, "settings": {"num_merged": 1}}}}
    predictor = VideoPredictor(make_task("classification"), {**features, "settings": settings})
    reduced = next(predictor.predict(video)).row["classes"][0]["probability"]
    assert 0 < reduced < 1
