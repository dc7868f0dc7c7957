"""Every metric against a slow re-implementation in plain Python, and on the cases where it must be 0 or 1."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.config.tasks import TaskName
from vidflow.models.tasks import build_metric
from vidflow.models.tasks.metrics.classification import wilson_interval
from vidflow.models.tasks.metrics.point_tracking import PointTrackingMetric

NAMES: tuple[TaskName, ...] = get_args(TaskName)
seeds = st.integers(0, 2**31)


def draw(name, seed, num_clips=5):
    """Random predictions near random ground truth, with hidden, absent and invalid parts."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    num_frames = 4
    low, visible = rand(num_clips, 3, num_frames, 2) / 2, rand(num_clips, 3, num_frames) < 0.7
    visible[0, 0] = False
    boxes = torch.cat([low, low + 0.1 + rand(num_clips, 3, num_frames, 2) / 3], -1)
    depth = 12 * rand(num_clips, num_frames, 3, 3) * (rand(num_clips, num_frames, 3, 3) < 0.8)
    depth[0, 0] = 0
    motion = torch.randn(num_clips, num_frames, 9, generator=generator)
    near = 10 ** (-3.5 + 3 * rand(num_clips, 3, num_frames, 1))
    targets = {
        "classification": {"label": torch.randint(0, 7, (num_clips,), generator=generator)},
        "box_tracking": {"boxes": boxes, "boxes_visible": visible},
        "point_tracking": {
            "points": low,
            "points_visible": visible,
            "query_frames": torch.randint(0, num_frames - 1, (num_clips, 3), generator=generator),
        },
        "depth": {"depth": depth},
        "camera_pose": {"camera_motion": motion},
        "masked_tokens": {},
    }[name]
    predictions = {
        "classification": {"logits": torch.randn(num_clips, num_frames, 7, generator=generator)},
        "box_tracking": {"boxes": boxes + 0.2 * (rand(*boxes.shape) - 0.5)},
        "point_tracking": {
            "points": low + near * torch.randn(low.shape, generator=generator),
            "visibility_logits": 2 + 3 * torch.randn(visible.shape, generator=generator),
            "uncertainty_logits": -2 + torch.randn(visible.shape, generator=generator),
        },
        "depth": {"depth": depth + torch.randn(depth.shape, generator=generator)},
        "camera_pose": {"camera_motion": motion + 0.1 * torch.randn(motion.shape, generator=generator)},
        "masked_tokens": {
            key: torch.randn(num_clips, 2, 6, 8, generator=generator) for key in ("tokens", "copied", "wanted")
        },
    }[name]
    return predictions, targets


def measure(name, predictions, targets):
    return measure_by(build_metric(name), predictions, targets)


def measure_by(metric, predictions, targets):
    metric.update(predictions, targets)
    return metric.compute()


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_matter(name):
    predictions, targets = draw(name, 0)
    metric = build_metric(name)
    for part in (slice(0, 2), slice(2, 5)):
        metric.update({k: v[part] for k, v in predictions.items()}, {k: v[part] for k, v in targets.items()})
    assert metric.compute() == pytest.approx(measure(name, predictions, targets), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_of_nothing_is_an_error(name):
    with pytest.raises(ValueError, match="has been counted"):
        build_metric(name).compute()


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_accuracy_is_counted_at_the_last_frame(seed):
    predictions, targets = draw("classification", seed, num_clips=20)
    logits, labels = predictions["logits"][:, -1].tolist(), targets["label"].tolist()
    ranks = [
        sorted(range(7), key=lambda c, row=row: -row[c]).index(label) for row, label in zip(logits, labels, strict=True)
    ]
    metric = build_metric("classification")
    metric.update(predictions, targets)
    results = metric.compute()
    assert results["top1"] == sum(rank == 0 for rank in ranks) / 20
    assert results["top5"] == sum(rank < 5 for rank in ranks) / 20
    guesses = [max(range(7), key=lambda c, row=row: row[c]) for row in logits]
    for true in range(7):
        for guess in range(7):
            count = sum(pair == (true, guess) for pair in zip(labels, guesses, strict=True))
            assert metric.confusion[true, guess] == count


@given(hits=st.integers(0, 50), misses=st.integers(0, 50))
def test_the_interval_holds_the_shares_whose_score_test_does_not_reject(hits, misses):
    total = max(1, hits + misses)
    hits = min(hits, total)
    low, high = wilson_interval(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            score = (hits / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert abs(score) == pytest.approx(1.959964, abs=1e-3)


def test_the_interval_agrees_with_a_published_example():
    # Source: Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_overlap_is_averaged_over_frames_then_tracks(seed):
    predictions, targets = draw("box_tracking", seed)

    def iou(a, b):
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
        return width * height / (sum(areas) - width * height)

    tracks = []
    for clip in range(5):
        for track in range(3):
            frames = [t for t in range(4) if targets["boxes_visible"][clip, track, t]][1:]
            pairs = [(predictions["boxes"][clip, track, t], targets["boxes"][clip, track, t]) for t in frames]
            if pairs:
                tracks.append(sum(iou(a.tolist(), b.tolist()) for a, b in pairs) / len(pairs))
    assert measure("box_tracking", predictions, targets)["miou"] == pytest.approx(sum(tracks) / len(tracks), abs=1e-6)


def slow_jaccard(predictions, targets, query_mode):
    clips = []
    for clip in range(len(targets["points"])):
        cells = []
        for point in range(3):
            if not targets["points_visible"][clip, point].any():
                continue
            query = int(targets["query_frames"][clip, point])
            for t in range(4):
                if t > query or (query_mode == "strided" and t != query):
                    here = (clip, point, t)
                    x, y = ((predictions["points"][here] - targets["points"][here]) * 256).tolist()
                    raw = [predictions[f"{kind}_logits"][here].item() for kind in ("visibility", "uncertainty")]
                    sure = 1 / (1 + math.exp(-raw[0])) * (1 - 1 / (1 + math.exp(-raw[1])))
                    cells.append((bool(targets["points_visible"][here]), sure > 0.5, math.hypot(x, y)))
        if not any(seen for seen, _, _ in cells):
            continue
        jaccards, within = [], []
        for threshold in (1, 2, 4, 8, 16):
            hit = sum(seen and said and far < threshold for seen, said, far in cells)
            false = sum(said and (not seen or far >= threshold) for seen, said, far in cells)
            missed = sum(seen and not (said and far < threshold) for seen, said, far in cells)
            wrong_place = sum(seen and said and far >= threshold for seen, said, far in cells)
            # A visible point in the wrong place is both a false positive and missed.
            assert wrong_place <= min(false, missed)
            jaccards.append(hit / (hit + false + missed))
            num_seen = sum(seen for seen, _, _ in cells)
            within.append(sum(seen and far < threshold for seen, _, far in cells) / num_seen)
        right = sum(seen == said for seen, said, _ in cells) / len(cells)
        clips.append((sum(jaccards) / 5, sum(within) / 5, right))
    return [sum(values) / len(clips) for values in zip(*clips, strict=True)]


@pytest.mark.parametrize("query_mode", ["first", "strided"])
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_points_are_scored_as_tap_vid_says(query_mode, seed):
    predictions, targets = draw("point_tracking", seed)
    results = measure_by(PointTrackingMetric(query_mode), predictions, targets)
    expected = slow_jaccard(predictions, targets, query_mode)
    names = ("average_jaccard", "delta_avg", "occlusion_accuracy")
    assert [results[name] for name in names] == pytest.approx(expected, abs=1e-6)


def test_perfect_points_score_one():
    predictions, targets = draw("point_tracking", 0)
    predictions["points"] = targets["points"]
    predictions["visibility_logits"] = torch.where(targets["points_visible"], 20.0, -20.0)
    predictions["uncertainty_logits"] = torch.full_like(predictions["visibility_logits"], -20.0)
    assert set(measure("point_tracking", predictions, targets).values()) == {1.0}


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_depth_errors_are_averaged_over_pixels_and_over_images(seed):
    predictions, targets = draw("depth", seed)
    images, pixels, good = [], [], []
    for guess, truth in zip(predictions["depth"].flatten(0, 1), targets["depth"].flatten(0, 1), strict=True):
        errors = []
        for p, d in zip(guess.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if 0.001 <= d <= 10:
                errors.append(abs(p - d) / d)
                good.append(p > 0 and max(p / d, d / p) < 1.25)
        pixels += errors
        if errors:
            images.append(sum(errors) / len(errors))
    expected = {
        "abs_rel": sum(pixels) / len(pixels),
        "abs_rel_per_image": sum(images) / len(images),
        "delta1": sum(good) / len(good),
    }
    assert measure("depth", predictions, targets) == pytest.approx(expected, rel=1e-6)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_pose_errors_are_distances_and_angles_after_the_first_frame(seed):
    predictions, targets = draw("camera_pose", seed)
    targets["camera_motion"][:, 0] = float("nan")

    def rotation(six):
        first = six[:3] / np.linalg.norm(six[:3])
        second = six[3:] - (first @ six[3:]) * first
        second = second / np.linalg.norm(second)
        return np.stack([first, second, np.cross(first, second)], 1)

    shifts, turns = [], []
    for clip in range(5):
        for t in range(1, 4):
            guess, truth = (part["camera_motion"][clip, t].double().numpy() for part in (predictions, targets))
            shifts.append(1000 * np.linalg.norm(guess[:3] - truth[:3]))
            cosine = (np.trace(rotation(guess[3:]).T @ rotation(truth[3:])) - 1) / 2
            turns.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    expected = {
        "rpe_translation_mm": np.mean(shifts),
        "rpe_translation_mm_rmse": np.sqrt(np.mean(np.square(shifts))),
        "rpe_rotation_deg": np.mean(turns),
        "rpe_rotation_deg_rmse": np.sqrt(np.mean(np.square(turns))),
    }
    assert measure("camera_pose", predictions, targets) == pytest.approx(expected, rel=1e-6)


def test_a_perfect_pose_has_no_error_at_all():
    _, targets = draw("camera_pose", 0)
    assert set(measure("camera_pose", targets, targets).values()) == {0.0}
