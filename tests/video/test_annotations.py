import io
from pathlib import Path

import numpy as np
import pytest

from vidflow.errors import VideoError
from vidflow.video.annotations import camera_motion, clip_annotations


def save(folder: Path, **arrays) -> Path:
    path = folder / "truth.npz"
    np.savez_compressed(path, **arrays)
    return path


def clip(path: Path, times, *, height: int = 80, width: int = 120, size: int = 40) -> dict[str, np.ndarray]:
    data = clip_annotations(path, np.asarray(times, float), source_height=height, source_width=width, size=size)
    with np.load(io.BytesIO(data)) as archive:
        return dict(archive)


def test_coordinates_become_fractions_of_the_centre_crop_at_the_nearest_moment(tmp_path):
    boxes = np.array([[[20, 0, 100, 80], [60, 40, 80, 60], [0, 0, 10, 10]]], float)
    path = save(tmp_path, pts_seconds=np.arange(3) / 10, boxes=boxes, boxes_visible=np.ones((1, 3), bool))
    got = clip(path, [0.0, 0.11, 0.2])
    np.testing.assert_allclose(got["boxes"][0, :2], [[0, 0, 1, 1], [0.5, 0.5, 0.75, 0.75]])
    # The last box lies left of the crop: it keeps no area and is not visible.
    np.testing.assert_array_equal(got["boxes_visible"], [[True, True, False]])


def test_coordinates_in_another_unit_than_pixels_say_the_size_of_their_frame(tmp_path):
    visible = np.ones((1, 1), bool)
    boxes, points = np.array([[[60.0, 40, 80, 60]]]), np.array([[[50.0, 30]]])
    shared = {"pts_seconds": [0.0], "boxes_visible": visible, "points_visible": visible}
    pixels = clip(save(tmp_path, boxes=boxes, points=points, **shared), [0.0])
    frame = np.array([120.0, 80])
    fractions = {"boxes": boxes / np.tile(frame, 2), "points": points / frame, "frame_size": [1, 1]}
    unit = clip(save(tmp_path, **fractions, **shared), [0.0])
    # Rounding of a division and its inverse, in single precision at the end.
    np.testing.assert_allclose(unit["boxes"], pixels["boxes"], atol=1e-6)
    np.testing.assert_allclose(unit["points"], pixels["points"], atol=1e-6)


def test_an_object_out_of_sight_in_the_first_frame_is_left_out(tmp_path):
    visible = np.array([[False, True], [True, True]])
    path = save(tmp_path, pts_seconds=[0, 0.1], boxes=np.tile([30.0, 10, 50, 30], (2, 2, 1)), boxes_visible=visible)
    assert clip(path, [0, 0.1])["boxes"].shape == (1, 2, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_visibility_may_be_given_as_zeros_and_ones(tmp_path, dtype):
    boxes = np.arange(3)[:, None, None] + np.tile([30.0, 10, 50, 30], (3, 2, 1))
    shared = {"pts_seconds": [0, 0.1], "boxes": boxes, "points": boxes[:, :, :2]}
    visible = np.array([[True, True], [False, True], [True, False]])
    truths = [
        clip(save(tmp_path, **shared, boxes_visible=each, points_visible=each), [0, 0.1])
        for each in (visible, visible.astype(dtype))
    ]
    assert len(truths[0]["boxes"]) == 2
    for name in truths[0]:
        np.testing.assert_array_equal(truths[1][name], truths[0][name])


def test_a_point_is_queried_where_it_is_first_seen_and_dropped_if_it_never_is(tmp_path):
    points = np.tile([60.0, 40.0], (3, 2, 1))
    points[2] = 5  # left of the crop
    visible = np.array([[False, True], [False, False], [True, True]])
    got = clip(save(tmp_path, pts_seconds=[0, 0.1], points=points, points_visible=visible), [0, 0.1])
    np.testing.assert_array_equal(got["query_frames"], [1])
    np.testing.assert_allclose(got["points"], np.full((1, 2, 2), 0.5))


def test_depth_is_cropped_like_the_frame(tmp_path):
    depth = np.broadcast_to(np.arange(120.0), (1, 80, 120))
    got = clip(save(tmp_path, pts_seconds=[0.0], depth=depth), [0.0])["depth"]
    np.testing.assert_array_equal(got[0, 0], 21 + 2 * np.arange(40))


def test_camera_motion_is_the_step_from_the_camera_before():
    poses = np.tile(np.eye(4), (3, 1, 1))
    turn = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # camera looks along world x
    poses[:, :3, :3] = turn
    poses[1:, 0, 3] = 2.0
    motion = camera_motion(poses)
    np.testing.assert_allclose(motion[1], [0, 0, 2, 1, 0, 0, 0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(motion[2], [0, 0, 0, 1, 0, 0, 0, 1, 0], atol=1e-7)


def test_the_bytes_do_not_depend_on_when_they_are_made(tmp_path):
    path = save(tmp_path, pts_seconds=[0.0], depth=np.ones((1, 8, 8)))
    times = np.zeros(2)
    first, second = (clip_annotations(path, times, source_height=8, source_width=8, size=8) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"boxes": np.zeros((1, 2, 4))}, "no `pts_seconds`"),
        ({"pts_seconds": [0, 1], "boxes": np.zeros((1, 3, 4))}, "wanted it to end in"),
        ({"pts_seconds": [0, 1], "points": np.zeros((1, 2, 2))}, "`points_visible` is missing"),
        ({"pts_seconds": [0, 1], "frame_size": [0, 1]}, "wanted a height and a width"),
        ({"pts_seconds": [0, 1], "depth": np.zeros((3, 4, 4))}, "wanted (2, height, width)"),
        ({"pts_seconds": np.float64(0)}, "no `pts_seconds`"),
        ({"pts_seconds": [0, np.nan]}, "no `pts_seconds`"),
        ({"pts_seconds": [0, 1], "depth": np.full((2, 4, 4), "near")}, "`depth` holds <U4, wanted numbers"),
        ({"pts_seconds": [0], "camera_pose": np.zeros((1, 4, 4))}, "no rotation and translation in 1 frames"),
        ({"pts_seconds": [0], "camera_pose": np.full((1, 4, 4), -np.inf)}, "no rotation and translation in 1 frames"),
        ({"pts_seconds": [0], "camera_pose": np.zeros((2, 1, 4, 4))}, "wanted it to end in"),
        (
            {"pts_seconds": [0], "points": np.zeros((1, 1, 2)), "points_visible": np.full((1, 1), 0.5)},
            "holds other values than false and true",
        ),
    ],
)
def test_arrays_that_do_not_fit_together_reject_the_video(tmp_path, arrays, part):
    with pytest.raises(VideoError) as caught:
        clip(save(tmp_path, **arrays), [0.0])
    assert part in str(caught.value)


def test_text_and_pickles_are_refused(tmp_path):
    path = tmp_path / "truth.npz"
    path.write_text("no archive")
    with pytest.raises(VideoError, match="not a readable"):
        clip(path, [0.0])
    np.savez(path, pts_seconds=np.array([{}], dtype=object))
    with pytest.raises(VideoError, match="not a readable"):
        clip(path, [0.0])
