import io
import os
from pathlib import Path

import numpy as np
import pytest

from vidflow.errors import VideoError
from vidflow.video.annotations import camera_motion, clip_annotations
from vidflow.video.sandbox import Sandbox


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
        ({"pts_seconds": [0, 1], "boxes": np.zeros((1, 3, 4))}, "wanted one that ends in"),
        ({"pts_seconds": [0, 1], "points": np.zeros((1, 2, 2))}, "`points_visible` is missing"),
        ({"pts_seconds": [0, 1], "points_visible": np.float64(1)}, "`points` are missing"),
        ({"pts_seconds": [0], "boxes": np.ones((1, 1, 4)), "boxes_visible": np.ones(1)}, "does not match `boxes`"),
        ({"pts_seconds": [0, 1], "frame_size": [0, 1]}, "wanted a height and a width"),
        ({"pts_seconds": [0, 1], "depth": np.zeros((3, 4, 4))}, "wanted (2, height, width)"),
        ({"pts_seconds": np.float64(0)}, "no `pts_seconds`"),
        ({"pts_seconds": [0, np.nan]}, "no `pts_seconds`"),
        ({"pts_seconds": [0, 1], "depth": np.full((2, 4, 4), "near")}, "`depth` holds <U4, wanted numbers"),
        ({"pts_seconds": [0], "camera_pose": np.zeros((1, 4, 4))}, "not a rotation and translation in 1 frames"),
        (
            {"pts_seconds": [0], "camera_pose": np.full((1, 4, 4), -np.inf)},
            "not a rotation and translation in 1 frames",
        ),
        ({"pts_seconds": [0], "camera_pose": np.zeros((2, 1, 4, 4))}, "wanted one that ends in"),
        (
            {"pts_seconds": [0], "points": np.zeros((1, 1, 2)), "points_visible": np.full((1, 1), 0.5)},
            "holds values other than false and true",
        ),
    ],
)
def test_arrays_that_do_not_fit_together_reject_the_video(tmp_path, arrays, part):
    with pytest.raises(VideoError) as caught:
        clip(save(tmp_path, **arrays), [0.0])
    assert part in str(caught.value)


VISIBLE = np.ones((1, 2), bool)
POSE = np.tile(np.eye(4), (2, 1, 1))
BOX = np.tile([30.0, 10, 50, 30], (1, 2, 1))
DEPTH = np.ones((2, 80, 120))


def changed(array, index, value):
    """A copy of an array with one value changed."""
    copy = array.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"depth": changed(DEPTH, (1, 5, 5), np.nan)}, "`depth` goes from nan to nan, wanted metres from 0"),
        ({"depth": changed(DEPTH, (1, 5, 5), np.inf)}, "`depth` goes from 1 to inf"),
        ({"depth": changed(DEPTH, (1, 5, 5), -0.5)}, "`depth` goes from -0.5 to 1"),
        # Half precision, in which depth is kept, ends at 65504.
        ({"depth": changed(DEPTH, (1, 5, 5), 65600)}, "`depth` goes from 1 to 65600"),
        ({"depth": np.ones((2, 120, 80))}, "`depth` is 80 x 120, another aspect ratio"),
        ({"depth": np.ones((2, 80, 0))}, "wanted (2, height, width)"),
        (
            {"boxes": changed(BOX, (0, 1, 0), 50)},
            "1 visible boxes are empty or outside the frame, such as [50.0, 10",
        ),
        ({"boxes": changed(BOX, (0, 1, 3), 9)}, "in frame 1 of [80, 120] height and width"),
        ({"boxes": BOX + np.array([120, 0, 120, 0])}, "2 visible boxes are"),
        ({"boxes": BOX - np.array([0, 30, 0, 30])}, "2 visible boxes are"),
        ({"boxes": changed(BOX, (0, 0, 2), np.inf)}, "1 visible boxes are"),
        ({"boxes": changed(BOX, (0, 0, 2), np.nan)}, "1 visible boxes are"),
        ({"boxes": BOX, "frame_size": [1.0, 1.0]}, "2 visible boxes are"),
        ({"points": changed(BOX[:, :, :2], (0, 0, 0), np.nan)}, "1 visible points are"),
        ({"points": BOX[:, :, :2] + 100}, "2 visible points are outside the frame"),
        ({"camera_pose": POSE * 1.1}, "not a rotation and translation in 2 frames"),
        ({"camera_pose": changed(POSE, (1, 0, 0), -1)}, "not a rotation and translation in 1 frames, such as frame 1"),
        ({"camera_pose": changed(POSE, (1, 3, 0), 1)}, "not a rotation and translation in 1 frames"),
        ({"camera_pose": changed(POSE, (1, 0, 3), 1e300)}, "not a rotation and translation in 1 frames"),
        ({"frame_size": [np.inf, 1]}, "wanted a height and a width"),
        ({"frame_size": [-1, 1]}, "wanted a height and a width"),
        ({"frame_size": [1.0]}, "has the shape (1,), wanted a height and a width"),
        ({"pts_seconds": [0.1, 0]}, "wanted each frame later than the one before"),
        ({"pts_seconds": [0, 0]}, "wanted each frame later than the one before"),
        ({"pts_seconds": [100, 100.1]}, "the frame at 0 s is 100 s from the nearest annotated one"),
        ({"depth": DEPTH.astype(complex)}, "`depth` holds <c16, wanted numbers"),
        ({"depth": DEPTH.astype(np.longdouble)}, "`depth` holds <f16, wanted numbers"),
    ],
)
def test_values_that_cannot_be_reject_the_clip(tmp_path, arrays, part):
    visible = {f"{name}_visible": VISIBLE for name in ("boxes", "points") if name in arrays}
    with pytest.raises(VideoError) as caught:
        clip(save(tmp_path, **({"pts_seconds": [0, 0.1]} | visible | arrays)), [0.0, 0.1])
    assert caught.value.reason == "Annotations"
    assert part in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_only_the_frames_of_the_clip_must_hold_values_that_can_be(tmp_path):
    lost = changed(np.tile(np.eye(4), (20, 1, 1)), slice(10, None), -np.inf)
    depth = changed(np.ones((20, 80, 120)), 15, np.nan)
    path = save(tmp_path, pts_seconds=np.arange(20) / 10, camera_pose=lost, depth=depth)
    assert np.isfinite(clip(path, [0.0, 0.9])["camera_motion"]).all()
    with pytest.raises(VideoError, match=r"in 1 frames, such as frame 10; .*cut the clip"):
        clip(path, [0.9, 1.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_hidden_may_be_anywhere_and_is_stored_as_finite_numbers(tmp_path, value):
    boxes, points = np.tile([30.0, 10, 50, 30], (1, 2, 1)), np.tile([60.0, 40], (1, 2, 1))
    boxes[0, 1], points[0, 1] = value, value
    visible = np.array([[True, False]])
    shared = {"boxes_visible": visible, "points_visible": visible}
    got = clip(save(tmp_path, pts_seconds=[0, 0.1], boxes=boxes, points=points, **shared), [0, 0.1])
    np.testing.assert_array_equal(got["boxes_visible"], visible)
    np.testing.assert_array_equal(got["points_visible"], visible)
    assert all(np.isfinite(got[name]).all() for name in got)


def test_a_box_that_sticks_out_of_the_frame_is_cut(tmp_path):
    boxes = np.array([[[-1e9, -5, 60, 40]]])
    got = clip(save(tmp_path, pts_seconds=[0], boxes=boxes, boxes_visible=np.ones((1, 1), bool)), [0])
    np.testing.assert_array_equal(got["boxes"], [[[0, 0, 0.5, 0.5]]])


@pytest.mark.parametrize(
    ("annotated", "moments", "gap"),
    [
        (np.arange(11.0), [0.5, 10.9], None),  # once a second, as boxes of Perception Test
        (np.delete(np.arange(11.0), 5), [5.0], None),  # one of which is missing
        (np.delete(np.arange(11.0), [5, 6]), [5.5], 1.5),
        (np.delete(np.arange(100) / 30, [50, 51]), [50.5 / 30], None),
        (np.arange(100) / 30, [3.39], None),  # rates are rounded
        (np.arange(100) / 30, [3.5], 0.2),
        ([0.0], [0.0, 0.5], 0.5),
        ([100.0, 200.0], [0.0, 1.0], 100),  # far apart among themselves is no excuse
    ],
)
def test_a_frame_has_an_annotated_one_near_it(tmp_path, annotated, moments, gap):
    path = save(tmp_path, pts_seconds=annotated)
    if gap is None:
        clip(path, moments)
        return
    with pytest.raises(VideoError, match=rf"is {gap:g}\d* s from the nearest annotated one, wanted at most"):
        clip(path, moments)


def test_the_nearest_of_many_moments_is_found_as_by_comparing_all(tmp_path):
    generator = np.random.default_rng(0)
    annotated = np.sort(generator.choice(200, 60, replace=False)) / 256
    # Moments in the middle between two annotated ones are among them: the earlier one answers.
    moments = np.concatenate([generator.uniform(annotated[0], annotated[-1], 50), (annotated[1:] + annotated[:-1]) / 2])
    depth = np.broadcast_to(np.arange(60.0)[:, None, None], (60, 8, 12))
    got = clip(save(tmp_path, pts_seconds=annotated, depth=depth), moments)["depth"]
    wanted = np.abs(annotated[None] - moments[:, None]).argmin(1)
    np.testing.assert_array_equal(got[:, 0, 0], wanted)


def test_text_pickles_and_single_arrays_are_refused(tmp_path):
    path = tmp_path / "truth.npz"
    path.write_text("no archive")
    with pytest.raises(VideoError, match="not a readable"):
        clip(path, [0.0])
    np.savez(path, pts_seconds=np.array([{}], dtype=object))
    with pytest.raises(VideoError, match=r"`pts_seconds` holds \|O, wanted numbers"):
        clip(path, [0.0])
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(VideoError, match="not a readable"):
        clip(path, [0.0])


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    pipe, device, folder = tmp_path / "pipe.npz", tmp_path / "zero.npz", tmp_path / "folder.npz"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    folder.mkdir()
    for path in (pipe, device, folder):
        with pytest.raises(VideoError, match=r"got a folder, pipe or device, wanted an \.npz file") as caught:
            clip(path, [0.0])
        assert caught.value.reason == "Annotations"
    with pytest.raises(VideoError, match="no such file"):
        clip(tmp_path / "gone.npz", [0.0])


def test_arrays_larger_than_the_memory_allowed_are_a_reject(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, pts_seconds=[0.0], depth=np.broadcast_to(np.float16(1), (1, 10_000, 20_000)))
    assert path.stat().st_size < 1 << 20
    with Sandbox(timeout_seconds=60, memory_mib=256) as sandbox, pytest.raises(VideoError) as caught:
        sandbox.call(clip_annotations, path, np.zeros(1), source_height=8, source_width=16, size=8)
    assert caught.value.reason == "OutOfMemory"
