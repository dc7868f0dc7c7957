import numpy as np
import pytest

from vidflow.video.synthetic.camera import draw_poses
from vidflow.video.synthetic.motion import CLASS_NAMES, reverse_of
from vidflow.video.synthetic.scene import NUM_DISTRACTORS, draw_scene


def scene(label, seed, *, num_frames=9, difficulty=1.0, camera_travel=1.0, camera_turn=4.0):
    return draw_scene(
        label,
        seed=seed,
        num_frames=num_frames,
        difficulty=difficulty,
        camera_travel=camera_travel,
        camera_turn=camera_turn,
    )


@pytest.mark.parametrize("label", CLASS_NAMES[::2])
def test_nothing_sinks_into_the_ground_or_the_wall_or_passes_behind_the_camera(label):
    for seed in range(20):
        drawn = scene(label, seed)
        for billboard in drawn.billboards:
            rim = billboard.centres[:, None] + billboard.outline()
            assert rim[..., 1].max() <= drawn.ground_y + 1e-9
            assert rim[..., 2].max() < drawn.wall_z
            away = np.einsum("fi,fki->fk", drawn.poses[:, :3, 2], rim - drawn.poses[:, None, :3, 3])
            assert away.min() > 0.3


def test_the_camera_pose_is_a_rigid_motion():
    poses = scene("grow", 0).poses
    turn = poses[:, :3, :3]
    np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turn.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1)
    np.testing.assert_array_equal(poses[:, 3], np.broadcast_to([0, 0, 0, 1], (len(poses), 4)))


def test_furniture_stands_still_while_objects_move():
    drawn = scene("move_left", 3)
    assert len(drawn.objects) == 1 + NUM_DISTRACTORS
    assert all(np.ptp(each.centres, axis=0).max() == 0 for each in drawn.furniture)
    assert all(np.ptp(each.centres, axis=0).max() > 0 for each in drawn.objects)


def test_the_partner_class_is_the_same_scene_with_time_running_backwards():
    for label in CLASS_NAMES:
        one, other = scene(label, 11), scene(reverse_of(label), 11)
        np.testing.assert_array_equal(one.poses, other.poses[::-1])
        for left, right in zip(one.billboards, other.billboards, strict=True):
            np.testing.assert_array_equal(left.centres, right.centres[::-1])
            np.testing.assert_array_equal(left.texture, right.texture)


def test_the_camera_is_as_likely_to_move_one_way_as_the_other():
    time = np.linspace(-1, 1, 4)
    gains = []
    for seed in range(500):
        _, poses = draw_poses(np.random.default_rng(seed), time=time, travel=1.0, turn=4.0, shake=1.0)
        turn = poses[0, :3, :3].T @ poses[-1, :3, :3]
        gains.append([*(poses[-1] - poses[0])[:3, 3], turn[0, 2] - turn[2, 0], turn[2, 1] - turn[1, 2], turn[1, 0]])
    assert_means_near_zero(np.array(gains))


def test_distractors_are_as_likely_to_move_one_way_as_the_other():
    objects = [scene("move_left", seed, num_frames=2).objects[1:] for seed in range(120)]
    assert_means_near_zero(np.array([np.ravel([np.diff(each.centres, axis=0) for each in three]) for three in objects]))


def assert_means_near_zero(sample):
    # A mean of a symmetric quantity is beyond 4 standard errors once in 16,000; the seeds are fixed.
    assert (np.abs(sample.mean(axis=0)) < 4 * sample.std(axis=0) / np.sqrt(len(sample))).all()


def test_an_easy_scene_has_no_shake_and_no_post():
    for seed in range(10):
        easy = scene("grow", seed, num_frames=33, difficulty=0.0)
        assert len(easy.furniture) == 3
        # A smooth way over 32 steps bends by under 1 mm and 1e-3 of a rotation per step; shake does so by centimetres.
        assert np.abs(np.diff(easy.poses, n=2, axis=0)).max() < 0.004
    rough = scene("grow", 0, num_frames=33, difficulty=1.0)
    assert np.abs(np.diff(rough.poses, n=2, axis=0)).max() > 0.02
    assert len(rough.furniture) == 4


def test_the_motion_of_the_target_in_view_does_not_depend_on_the_travel_of_the_camera():
    views = []
    for travel in (0.0, 1.0):
        drawn = scene("clockwise", 2, difficulty=0.0, camera_travel=travel)
        offset = drawn.objects[0].centres - drawn.poses[:, :3, 3]
        views.append(np.einsum("fij,fi->fj", drawn.poses[:, :3, :3], offset))
    np.testing.assert_allclose(views[0], views[1], atol=1e-9)
