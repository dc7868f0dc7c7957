"""One draw per clip, which depends on the seed, the epoch and the clip's key only."""

import numpy as np
import pytest
import torch

from vidflow.config.schema import Augmentation
from vidflow.video.augmentation import augment_frames
from vidflow.video.augmented_targets import augment_targets, exchanged_label, label_pairs
from vidflow.video.view_draws import View, clip_generator, draw_view

SIDE = 16
PLAIN = View(box=(0, 0, SIDE, SIDE), is_flipped=False, shift=0, color=None, operations=(), erased=None)
ALL = Augmentation(
    crop_area=(0.2, 1),
    flip=0.5,
    color_jitter=0.4,
    randaugment_layers=4,
    randaugment_magnitude=10,
    temporal_shift=2,
    erasing=0.5,
)


def _view(**changes) -> View:
    return View(**{name: getattr(PLAIN, name) for name in PLAIN.__slots__} | changes)


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)


def test_without_settings_a_view_is_the_clip(frames):
    view = draw_view(Augmentation(), clip_generator(0, 1, "key"), size=SIDE)
    assert view == PLAIN
    assert np.array_equal(augment_frames(frames, view, size=SIDE), frames)


def test_a_draw_depends_on_seed_epoch_and_key_only():
    draws = {
        (seed, epoch, key): draw_view(ALL, clip_generator(seed, epoch, key), size=SIDE)
        for seed in (0, 1)
        for epoch in (1, 2)
        for key in ("a", "b")
    }
    assert len(set(draws.values())) == 8
    np.random.default_rng(5).random(100)
    assert draws[1, 2, "b"] == draw_view(ALL, clip_generator(1, 2, "b"), size=SIDE)


def test_all_frames_of_a_clip_change_alike(frames):
    still = np.broadcast_to(frames[:1], frames.shape)
    for key in map(str, range(40)):
        shown = augment_frames(still, draw_view(ALL, clip_generator(0, 1, key), size=SIDE), size=8)
        assert shown.dtype == torch.uint8
        assert shown.shape == (4, 8, 8, 3)
        assert (shown == shown[:1]).all()


@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_every_operation_of_randaugment_keeps_the_shape(frames, strength):
    from vidflow.video.view_draws import _OPERATIONS

    for name in _OPERATIONS:
        shown = augment_frames(frames, _view(operations=((name, strength),)), size=SIDE)
        assert shown.shape == frames.shape
        assert np.array_equal(shown, frames) == (name == "identity"), name


def test_crops_have_the_drawn_areas_and_aspects():
    boxes = [
        draw_view(Augmentation(crop_area=(0.25, 0.5)), clip_generator(0, 1, str(n)), size=200).box for n in range(300)
    ]
    for top, left, height, width in boxes:
        assert 0 <= top <= 200 - height
        assert 0 <= left <= 200 - width
        # Sides are rounded to pixels.
        assert 0.24 < height * width / 200**2 < 0.51
        assert 0.74 < width / height < 1.35
    assert len(set(boxes)) > 290


def test_a_shifted_clip_repeats_its_border_frames(frames):
    later, earlier = (augment_frames(frames, _view(shift=shift), size=SIDE).numpy() for shift in (1, -2))
    assert np.array_equal(later, frames[[1, 2, 3, 3]])
    assert np.array_equal(earlier, frames[[0, 0, 0, 1]])


def test_truth_moves_with_the_pixels():
    """A white square on black is found where its transformed box, its centre and its depth say."""
    side, size = 64, 32
    frames = np.zeros((2, side, side, 3), np.uint8)
    frames[:, 20:32, 28:48] = 255
    depth = np.where(frames[..., 0] > 0, np.float32(2), np.float32(5))
    targets = {
        "boxes": np.tile(np.float32([28, 20, 48, 32]) / side, (1, 2, 1)),
        "boxes_visible": np.ones((1, 2), bool),
        "points": np.tile(np.float32([38, 26]) / side, (1, 2, 1)),
        "points_visible": np.ones((1, 2), bool),
        "query_frames": np.zeros(1, np.int64),
        "depth": depth,
    }
    for is_flipped in (False, True):
        view = _view(box=(8, 16, 40, 44), is_flipped=is_flipped)
        bright = augment_frames(frames, view, size=size).numpy()[0, ..., 0] > 127
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        moved = augment_targets(targets, view, size=side)
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size
        # A border may be anywhere within a pixel.
        np.testing.assert_allclose(moved["boxes"][0, 0], found, atol=1 / size)
        centre = [(found[0] + found[2]) / 2, (found[1] + found[3]) / 2]
        np.testing.assert_allclose(moved["points"][0, 0], centre, atol=1 / size)
        near = moved["depth"][0] < 3
        assert near.shape == (side, side)
        assert abs(near.mean() - bright.mean()) < 0.05
        assert near[int(centre[1] * side), int(centre[0] * side)]


def test_what_leaves_the_crop_is_not_visible_and_what_cannot_be_asked_for_is_left_out():
    targets = {
        "boxes": np.float32([[[0.0, 0, 0.2, 0.2]] * 2, [[0.4, 0.4, 0.9, 0.9]] * 2]),
        "boxes_visible": np.ones((2, 2), bool),
        "points": np.float32([[[0.1, 0.1], [0.6, 0.6]], [[0.1, 0.1], [0.1, 0.1]]]),
        "points_visible": np.ones((2, 2), bool),
        "query_frames": np.zeros(2, np.int64),
    }
    moved = augment_targets(targets, _view(box=(8, 8, 8, 8)), size=16)
    np.testing.assert_allclose(moved["boxes"], [[[0, 0, 0.8, 0.8]] * 2], atol=1e-6)
    assert moved["points_visible"].tolist() == [[False, True]]
    assert moved["query_frames"].tolist() == [1]


def test_a_mirrored_camera_moves_the_other_way_and_a_repeated_frame_does_not_move():
    angle = 0.3
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    motion = np.float32([[0] * 9, [1, 2, 3, *turn[:, 0], *turn[:, 1]], [4, 5, 6, *turn[:, 0], *turn[:, 1]]])
    flipped = augment_targets({"camera_motion": motion}, _view(is_flipped=True), size=SIDE)["camera_motion"]
    np.testing.assert_allclose(flipped[1], [-1, 2, 3, *turn.T[:, 0], *turn.T[:, 1]], atol=1e-6)
    shifted = augment_targets({"camera_motion": motion}, _view(shift=1), size=SIDE)["camera_motion"]
    np.testing.assert_allclose(shifted[1], motion[2])
    np.testing.assert_allclose(shifted[2], [0, 0, 0, 1, 0, 0, 0, 1, 0])


def test_a_mirrored_clip_exchanges_the_named_classes():
    pairs = label_pairs([("left", "right")], ["left", "right", "up"])
    assert [exchanged_label(label, _view(is_flipped=True), pairs) for label in range(3)] == [1, 0, 2]
    assert [exchanged_label(label, PLAIN, pairs) for label in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="got 'lift', wanted classes such as left"):
        label_pairs([("lift", "right")], ["left", "right"])
