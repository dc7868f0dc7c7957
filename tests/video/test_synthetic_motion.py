import numpy as np
import pytest

from vidflow.video.synthetic.motion import CLASS_NAMES, HALF_VIEW, draw_target_path, forward_of, reverse_of

TIME = np.linspace(-1, 1, 25)
SEEDS = range(30)


def path(label, seed, time=TIME):
    return draw_target_path(label, np.random.default_rng(seed), time=time)


def in_view(points):
    return points[:, :2] / (HALF_VIEW * points[:, 2:])


def test_every_class_has_one_partner_and_is_its_partners_partner():
    assert len(set(CLASS_NAMES)) == 10
    for label in CLASS_NAMES:
        assert reverse_of(label) != label
        assert reverse_of(reverse_of(label)) == label
        assert forward_of(label) == forward_of(reverse_of(label))


def test_a_name_that_is_no_class_is_refused_with_the_names_that_are():
    with pytest.raises(ValueError, match="'jump' is not a rendered class; choose one of move_left, move_right"):
        reverse_of("jump")


@pytest.mark.parametrize("label", ["move_left", "move_up", "grow", "clockwise", "enter"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_speed_is_the_same_forwards_and_backwards_about_the_middle(label, seed):
    points = in_view(path(label, seed))
    speed = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    if label != "grow":  # its centre slides along a line of sight as the size changes, faster when near
        np.testing.assert_allclose(speed, speed[::-1], atol=1e-12)
    zoom = np.diff(np.log(path(label, seed)[:, 2]))
    np.testing.assert_allclose(zoom, zoom[::-1], atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_paths_go_where_their_names_say(seed):
    left, up, grow, clockwise = (path(label, seed) for label in ("move_left", "move_up", "grow", "clockwise"))
    assert (np.diff(left[:, 0]) < 0).all()
    assert np.ptp(left[:, 1:], axis=0).max() == 0
    assert (np.diff(up[:, 1]) < 0).all()  # y is down
    assert np.ptp(up[:, [0, 2]], axis=0).max() == 0
    assert (np.diff(grow[:, 2]) < 0).all()
    assert grow[0, 2] > 2 * grow[-1, 2]
    angle = np.unwrap(np.arctan2(clockwise[:, 1], clockwise[:, 0]))
    assert (np.diff(angle) > 0).all()  # with y down, a growing angle is clockwise to the eye
    assert angle[-1] - angle[0] > 1.6 * np.pi


@pytest.mark.parametrize("seed", SEEDS)
def test_the_target_enters_from_beyond_the_frame_and_ends_near_the_middle(seed):
    points = path("enter", seed)
    away = np.abs(in_view(points)).max(axis=-1)
    assert away[0] > 1 + 0.6 / (HALF_VIEW * points[0, 2])  # 0.6 m is more than a target's radius with its lobes
    assert away[-1] < 0.36


def test_the_path_at_a_moment_does_not_depend_on_the_number_of_frames():
    for label in ("grow", "clockwise"):
        np.testing.assert_allclose(path(label, 5)[::2], path(label, 5, time=TIME[::2]))
