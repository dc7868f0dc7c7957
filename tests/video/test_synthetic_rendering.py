import numpy as np
import pytest

from vidflow.video.synthetic.camera import intrinsics, project
from vidflow.video.synthetic.rendering import FIRST_BILLBOARD, GROUND, WALL, render_scene
from vidflow.video.synthetic.scene import draw_scene

SIZE = 64


@pytest.fixture(scope="module", params=["grow", "clockwise", "leave"])
def scene(request):
    return draw_scene(request.param, seed=5, num_frames=6, difficulty=0.8, camera_travel=0.6, camera_turn=4.0)


@pytest.fixture(scope="module")
def rendering(scene):
    return render_scene(scene, size=SIZE)


def cast(scene, frame, x, y):
    """Nearest layer and its depth along one ray, surface by surface; also how near the ray passes to any edge, in m."""
    matrix, pose = intrinsics(SIZE), scene.poses[frame]
    ray = pose[:3, :3] @ np.linalg.solve(matrix, [x, y, 1.0])
    eye = pose[:3, 3]
    hits = [((scene.wall_z - eye[2]) / ray[2], WALL)]
    if ray[1] > 0:
        hits.append(((scene.ground_y - eye[1]) / ray[1], GROUND))
    slack = abs(hits[0][0] - hits[-1][0]) if len(hits) > 1 else np.inf
    for number, board in enumerate(scene.billboards):
        depth = (board.centres[frame, 2] - eye[2]) / ray[2]
        u, v, _ = eye + depth * ray - board.centres[frame]
        if board.shape == "bar":
            margin = min(board.half_width - abs(u), board.half_height - abs(v))
        else:
            margin = board.half_width * (1 + board.bulge * np.cos(board.lobes * np.arctan2(v, u))) - np.hypot(u, v)
        slack = min(slack, abs(margin))
        if margin > 0:
            hits.append((depth, FIRST_BILLBOARD + number))
    return *min(hits), slack


def test_depth_and_layers_agree_with_rays_cast_one_by_one(scene, rendering):
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(400):
        frame, row, column = rng.integers([len(scene.poses), SIZE, SIZE])
        depth, layer, slack = cast(scene, frame, column + 0.5, row + 0.5)
        if slack > 1e-3:  # on an edge, float32 may fall to the other side
            compared += 1
            assert rendering.layers[frame, row, column] == layer
            # float32 rays: relative error 1e-7, times the ratio of depth to the height of a slanting hit.
            assert rendering.depth[frame, row, column] == pytest.approx(depth, rel=1e-4)
    assert compared > 350


def test_every_pixel_is_painted_between_the_camera_and_the_wall(scene, rendering):
    assert rendering.frames.shape == (6, SIZE, SIZE, 3)
    assert rendering.frames.dtype == np.uint8
    assert rendering.depth.min() > 0.3
    # Camera z of the wall: at most 9.5 m and the camera's way, over the cosine of the tilt.
    assert rendering.depth.max() < 13
    assert {WALL, GROUND} <= set(np.unique(rendering.layers))


def test_only_the_target_is_saturated(scene, rendering):
    pixels = rendering.frames.astype(int)
    saturation = np.ptp(pixels, axis=-1) / pixels.max(axis=-1)
    target = rendering.layers == FIRST_BILLBOARD
    assert np.median(saturation[target]) > 0.45
    # Half-covered pixels of the target's rim may be saturated too: under 2% of the picture.
    assert (saturation[~target] > 0.45).mean() < 0.02


def test_haze_takes_contrast_with_distance(scene, rendering):
    ground = rendering.layers == GROUND
    near = ground & (rendering.depth < np.quantile(rendering.depth[ground], 0.3))
    far = ground & (rendering.depth > np.quantile(rendering.depth[ground], 0.7))
    assert rendering.frames[near].std() > rendering.frames[far].std()


def test_a_point_before_the_camera_projects_to_the_middle():
    pose = np.eye(4)[None].repeat(2, axis=0)
    xy, depth = project(np.array([[[0.0, 0, 3], [0, 0, 5]]]), pose, intrinsics(SIZE))
    np.testing.assert_allclose(xy, SIZE / 2)
    np.testing.assert_allclose(depth, [[3, 5]])
