import io
from pathlib import Path

import numpy as np
import pytest
from feature_sets import finish_features
from PIL import Image, ImageColor

from vidflow.config.schema import Trial, Trials
from vidflow.config.search import objective_of
from vidflow.records import ClipTokens, EpochResult, TrialResult
from vidflow.report.figures import LIGHT
from vidflow.report.pictures import PREDICTION, TRUTH, draw_boxes, draw_clips, draw_tracks
from vidflow.report.results import Pictured, read_pictured
from vidflow.store.features import FeatureReader
from vidflow.training.snapshot import load_result, write_result
from vidflow.training.trial import run_trial

TASKS = ("box_tracking", "point_tracking", "depth", "camera_pose")
NUM_CLIPS, NUM_FRAMES, SIDE = 6, 4, 16
GREY = np.full((NUM_FRAMES, 32, 32, 3), 120, np.uint8)


def truth_of(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    num_objects = 1 + index % 2  # clips of a batch differ, so that some are filled up
    corner = rng.uniform(0.1, 0.4, size=(num_objects, NUM_FRAMES, 2))
    return {
        "boxes": np.concatenate([corner, corner + 0.4], -1).astype(np.float32),
        "boxes_visible": np.ones((num_objects, NUM_FRAMES), bool),
        "points": rng.uniform(size=(num_objects, NUM_FRAMES, 2)).astype(np.float32),
        "points_visible": np.ones((num_objects, NUM_FRAMES), bool),
        "query_frames": np.zeros(num_objects, np.int64),
        "depth": rng.uniform(1, 5, size=(NUM_FRAMES, SIDE, SIDE)).astype(np.float16),
        "camera_motion": np.tile(np.float32([0.1, 0, 0.2, 1, 0, 0, 0, 1, 0]), (NUM_FRAMES, 1)),
    }


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> FeatureReader:
    folder = tmp_path_factory.mktemp("features")
    metadata = {"embed_dim": 8, "depths": [0], "num_frames": NUM_FRAMES, "class_names": [], "fingerprint": "0" * 16}
    clips = []
    for index in range(NUM_CLIPS):
        buffer = io.BytesIO()
        np.savez(buffer, **truth_of(index))
        clips.append(
            ClipTokens(
                key=f"clip{index}",
                label=-1,
                split="train" if index < 3 else "val",
                pts_seconds=np.arange(NUM_FRAMES) / 4,
                tokens=np.random.default_rng(index).normal(size=(NUM_FRAMES * 4, 8)).astype(np.float16),
                prefix=np.zeros((NUM_FRAMES, 0, 8), np.float16),
                counts=np.full((NUM_FRAMES, 1), 4, np.int32),
                annotations=buffer.getvalue(),
            )
        )
    return finish_features(folder, {"f.arrow": clips}, metadata)


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, reader: FeatureReader, tmp_path_factory: pytest.TempPathFactory):
    """A trial that was really trained for an epoch: its task, what it predicted, and its metrics."""
    task = request.param
    trial = Trial(task=task, core="identity", num_layers=1, readout_dim=8, readout_heads=2, epochs=1, batch_size=2)
    folder = tmp_path_factory.mktemp(task)
    list(run_trial(trial, reader, directory=folder, key="k", objective=objective_of(Trials(), task), device="cpu"))
    result = load_result(folder) or write_result(folder, "completed")
    return task, read_pictured(result), result.best.metrics


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def place_of(image: np.ndarray, colour: str) -> tuple[float, float] | None:
    """Mean x and y of the pixels near a colour, in fractions of the height; JPEG blurs colours."""
    found = np.argwhere(np.abs(image - ImageColor.getrgb(colour)).sum(axis=-1) < 90)
    return tuple((found.mean(axis=0)[::-1] + 0.5) / len(image)) if len(found) else None


def draw(task: str, pictured: Pictured, reader: FeatureReader, num_clips: int = 3):
    objective, _ = objective_of(Trials(), task)
    return draw_clips(task, pictured, reader, lambda _: GREY, objective=objective, num_clips=num_clips)


def test_every_dense_task_is_drawn_from_what_a_trial_left_in_its_folder(trained, reader: FeatureReader) -> None:
    task, pictured, _ = trained
    pictures = draw(task, pictured, reader)
    assert [picture.key for picture in pictures] == ([""] if task == "camera_pose" else ["clip3", "clip4", "clip5"])
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.content[LIGHT]))
        assert image.format == picture.kind.upper()
        assert image.width / picture.scale < 1200  # what a page has room for
        assert np.asarray(image.convert("L")).std() > 5


def test_captions_say_what_the_metric_says_of_each_clip(trained, reader: FeatureReader) -> None:
    task, pictured, metrics = trained
    if task == "camera_pose":
        pytest.skip("its captions are in the figure")
    objective, _ = objective_of(Trials(), task)
    values = [float(picture.caption.split()[1]) for picture in draw(task, pictured, reader)]
    if task == "box_tracking":  # its mean is over tracks, of which the clips have 2, 1 and 2
        values = np.repeat(values, [2, 1, 2])
    # Captions have four digits; depth is kept in half precision, of three and a half.
    assert np.mean(values) == pytest.approx(metrics[objective], rel=2e-3, abs=1e-3)


def test_no_more_clips_are_drawn_than_asked_for(trained, reader: FeatureReader) -> None:
    task, pictured, _ = trained
    assert len(draw(task, pictured, reader, num_clips=1)) == 1


def test_boxes_are_where_they_should_be_and_in_two_colours() -> None:
    left, right = np.float32([[[0.1, 0.3, 0.3, 0.7]]]), np.float32([[[0.6, 0.3, 0.9, 0.7]]])
    image = pixels(draw_boxes(GREY[:1], left, np.array([[True]]), right))
    assert place_of(image, TRUTH) == pytest.approx((0.2, 0.5), abs=0.02)
    assert place_of(image, PREDICTION) == pytest.approx((0.75, 0.5), abs=0.02)


def test_a_hidden_box_has_no_truth_and_before_it_is_given_no_prediction() -> None:
    box = np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (1, 3, 1))
    image = pixels(draw_boxes(GREY[:3], box, np.array([[False, True, False]]), box + 0.05))
    cells = np.array_split(image, 3, axis=1)
    assert [place_of(cell, TRUTH) is not None for cell in cells] == [False, True, False]
    assert [place_of(cell, PREDICTION) is not None for cell in cells] == [False, True, True]


def test_corners_in_the_wrong_order_are_drawn_all_the_same() -> None:
    box = np.float32([[[0.9, 0.9, 0.1, 0.1]]])
    assert place_of(pixels(draw_boxes(GREY[:1], box, np.array([[False]]), box)), PREDICTION) is None
    assert place_of(pixels(draw_boxes(GREY[:1], box, np.array([[True]]), box)), PREDICTION) is not None


def test_points_are_filled_where_seen_and_hollow_where_hidden() -> None:
    truth, predicted = np.float32([[[0.25, 0.25]]]), np.float32([[[0.75, 0.75]]])

    def middles(visible: bool, claimed: bool) -> list[bool]:
        image = pixels(draw_tracks(GREY[:1], truth, np.array([[visible]]), predicted, np.array([[claimed]])))
        at = [image[round(f * len(image)) + 3, round(f * len(image)) - 3] for f in (0.25, 0.75)]
        return [
            bool(np.abs(c - ImageColor.getrgb(n)).sum() < 120) for c, n in zip(at, (TRUTH, PREDICTION), strict=True)
        ]

    assert middles(True, False) == [True, False]
    assert middles(False, True) == [False, True]


def test_a_classifier_leaves_nothing_to_draw(tmp_path: Path) -> None:
    result = TrialResult(
        key="k",
        settings={"task": "classification"},
        status="completed",
        history=(EpochResult(epoch=1, is_best=True),),
        num_parameters=1,
        directory=tmp_path,
    )
    assert read_pictured(result) is None
