import io
import math

import numpy as np
import pytest

from vidflow.errors import VidflowError
from vidflow.models.tasks import spec_of
from vidflow.training.baselines import baseline_metrics

TASKS = ("classification", "box_tracking", "point_tracking", "depth", "camera_pose", "masked_tokens")


def truths(reader, split):
    """The annotations of every clip of a split."""
    archives = [np.load(io.BytesIO(reader[i].annotations)) for i in range(len(reader)) if reader.splits[i] == split]
    return [{name: archive[name].astype(np.float64) for name in archive.files} for archive in archives]


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def test_the_most_frequent_class_is_right_as_often_as_it_occurs(feature_set, tmp_path):
    labels = [0, 1, 1, 1, 2, 2, 1, 0, 2, 1, 0, 0, 2, 2]
    tokens = np.zeros((len(labels), 2, 1, 1, 4))
    reader = feature_set(tmp_path, tokens, labels, ["train"] * 6 + ["val"] * 8)
    values = baseline_metrics("classification", reader)
    assert values["val/top1"] == 2 / 8
    assert values["val/top5"] == 1.0
    assert values["val/top1_low"] < 2 / 8 < values["val/top1_high"]


def test_a_box_that_stays_overlaps_as_a_loop_over_frames_says(annotated_features):
    tracks = []
    for clip in truths(annotated_features, "val"):
        # All are visible throughout.
        tracks += [np.mean([iou(boxes[0], box) for box in boxes[1:]]) for boxes in clip["boxes"]]
    # Boxes are stored in float32 and compared in float64: 1e-6 is far above its rounding.
    assert math.isclose(baseline_metrics("box_tracking", annotated_features)["val/miou"], np.mean(tracks), abs_tol=1e-6)


def test_a_box_is_held_from_the_first_frame_that_shows_it(feature_set, tmp_path):
    left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    truth = {
        "boxes": np.float32([[left, right, right, left]]),
        "boxes_visible": np.array([[False, True, True, True]]),
    }
    reader = feature_set(tmp_path, np.zeros((2, 4, 1, 1, 4)), [-1, -1], ["train", "val"], annotations=[truth] * 2)
    assert baseline_metrics("box_tracking", reader)["val/miou"] == 0.5


def test_a_point_that_stays_is_within_reach_as_a_loop_over_frames_says(annotated_features):
    shares = []
    for clip in truths(annotated_features, "val"):
        offsets = [256 * math.dist(track[0], xy) for track in clip["points"] for xy in track[1:]]
        shares.append(np.mean([[offset < limit for offset in offsets] for limit in (1, 2, 4, 8, 16)]))
    values = baseline_metrics("point_tracking", annotated_features)
    assert math.isclose(values["val/delta_avg"], np.mean(shares), abs_tol=1e-6)
    assert values["val/occlusion_accuracy"] == 1.0  # all are in sight, and that is the answer


def test_a_point_is_held_from_its_query_frame(feature_set, tmp_path):
    truth = {
        "points": np.float32([[[0.9, 0.9], [0.2, 0.2], [0.2, 0.2]]]),
        "points_visible": np.array([[False, True, True]]),
        "query_frames": np.array([1]),
    }
    reader = feature_set(tmp_path, np.zeros((2, 3, 1, 1, 4)), [-1, -1], ["train", "val"], annotations=[truth] * 2)
    assert baseline_metrics("point_tracking", reader)["val/average_jaccard"] == 1.0


def test_the_mean_depth_map_errs_as_a_loop_over_clips_says(annotated_features):
    train = np.stack([clip["depth"] for clip in truths(annotated_features, "train")])
    mean = train.mean(axis=(0, 1))
    errors = [np.abs(mean - clip["depth"]) / clip["depth"] for clip in truths(annotated_features, "val")]
    # The mean is kept in float32.
    assert math.isclose(baseline_metrics("depth", annotated_features)["val/abs_rel"], np.mean(errors), rel_tol=1e-6)


def test_a_pixel_whose_depth_is_never_known_gets_the_mean_of_the_others(feature_set, tmp_path):
    known = np.array([[[2.0, 0.0]], [[4.0, 0.0]]], np.float16)  # (T, H, W), where 0 is unknown
    asked = np.array([[[3.0, 3.0]], [[3.0, 3.0]]], np.float16)
    reader = feature_set(
        tmp_path,
        np.zeros((2, 2, 1, 1, 4)),
        [-1, -1],
        ["train", "val"],
        annotations=[{"depth": known}, {"depth": asked}],
    )
    assert baseline_metrics("depth", reader)["val/abs_rel"] == 0.0


def test_the_mean_motion_is_that_of_the_training_split(feature_set, tmp_path):
    straight = np.float32([1, 0, 0, 0, 1, 0])

    def clip(metres):
        motion = np.tile(np.concatenate([[metres, 0, 0], straight]), (3, 1)).astype(np.float32)
        motion[0] = 0  # there is none into the first frame
        return {"camera_motion": motion}

    reader = feature_set(
        tmp_path,
        np.zeros((3, 3, 1, 1, 4)),
        [-1] * 3,
        ["train", "train", "val"],
        annotations=[clip(0.1), clip(0.3), clip(0.5)],
    )
    values = baseline_metrics("camera_pose", reader)
    assert math.isclose(values["val/rpe_translation_mm"], 300.0, rel_tol=1e-6)
    assert values["val/rpe_rotation_deg"] < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_every_baseline_says_what_it_is_and_has_the_names_of_a_trials_metrics(task, noise_features, annotated_features):
    values = baseline_metrics(task, noise_features if task == "classification" else annotated_features)
    assert all(name.startswith("val/") and math.isfinite(value) for name, value in values.items())
    assert spec_of(task).trivial.words.startswith("the ")


def test_a_split_without_anything_to_count_is_said(feature_set, tmp_path):
    truth = {"boxes": np.zeros((0, 2, 4), np.float32), "boxes_visible": np.zeros((0, 2), bool)}
    reader = feature_set(tmp_path, np.zeros((2, 2, 1, 1, 4)), [-1, -1], ["train", "val"], annotations=[truth] * 2)
    with pytest.raises(VidflowError, match="track with two visible frames"):
        baseline_metrics("box_tracking", reader)
