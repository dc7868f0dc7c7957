from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from vidflow.video.synthetic.camera import intrinsics
from vidflow.video.synthetic.ground_truth import NUM_POINTS, annotate
from vidflow.video.synthetic.rendering import FIRST_BILLBOARD, GROUND, WALL, render_scene
from vidflow.video.synthetic.scene import draw_scene

SIZE, NUM_FRAMES = 64, 12
CASES = list(product(["move_right", "grow", "counterclockwise", "leave"], range(3)))


class Example:
    """A rendered clip with its ground truth, and which layer each of its points sticks to."""

    def __init__(self, label, seed):
        self.scene = draw_scene(
            label, seed=seed, num_frames=NUM_FRAMES, difficulty=0.9, camera_travel=0.8, camera_turn=4.0
        )
        self.rendering = render_scene(self.scene, size=SIZE)
        self.truth = annotate(self.scene, self.rendering, fps=12, seed=seed)
        x, y = self.truth["points"][:, 0].astype(int).T
        self.layers = self.rendering.layers[0, y, x].astype(int)

    def world(self, xy, depth, frame):
        """Lift pixels at known depth into the world."""
        ray = np.linalg.solve(self.truth["camera_intrinsics"], np.append(xy, 1.0))
        pose = self.truth["camera_pose"][frame]
        return pose[:3, :3] @ (ray * depth) + pose[:3, 3]

    def surface_depth(self, layer, xy, frame):
        """Camera z where the ray of a pixel position meets the unbounded plane of a layer."""
        pose = self.truth["camera_pose"][frame]
        ray = pose[:3, :3] @ np.linalg.solve(self.truth["camera_intrinsics"], np.append(xy, 1.0))
        if layer == GROUND:
            return (self.scene.ground_y - pose[1, 3]) / ray[1]
        plane_z = (
            self.scene.wall_z if layer == WALL else self.scene.billboards[layer - FIRST_BILLBOARD].centres[frame, 2]
        )
        return (plane_z - pose[2, 3]) / ray[2]


@pytest.fixture(scope="module", params=CASES, ids=str)
def example(request):
    return Example(*request.param)


def test_shapes_types_and_ranges_are_as_promised(example):
    truth = example.truth
    num_objects = len(example.scene.objects)
    assert {name: (array.shape, array.dtype.name) for name, array in truth.items()} == {
        "pts_seconds": ((NUM_FRAMES,), "float64"),
        "boxes": ((num_objects, NUM_FRAMES, 4), "float32"),
        "boxes_visible": ((num_objects, NUM_FRAMES), "bool"),
        "points": ((NUM_POINTS, NUM_FRAMES, 2), "float32"),
        "points_visible": ((NUM_POINTS, NUM_FRAMES), "bool"),
        "depth": ((NUM_FRAMES, SIZE, SIZE), "float16"),
        "camera_intrinsics": ((3, 3), "float64"),
        "camera_pose": ((NUM_FRAMES, 4, 4), "float64"),
    }
    np.testing.assert_allclose(np.diff(truth["pts_seconds"]), 1 / 12)
    assert truth["pts_seconds"][0] == 0
    low, high = truth["boxes"][..., :2], truth["boxes"][..., 2:]
    assert (low >= 0).all()
    assert (low <= high).all()
    assert (high <= SIZE).all()
    assert np.isfinite(truth["points"]).all()
    seen = truth["points"][truth["points_visible"]]
    assert (seen >= 0).all()
    assert (seen < SIZE).all()


def test_every_point_starts_in_view_in_the_middle_of_a_pixel(example):
    assert example.truth["points_visible"][:, 0].all()
    # Through float32 depth and back: 1e-7 relative, over 64 pixels.
    np.testing.assert_allclose(example.truth["points"][:, 0] % 1, 0.5, atol=1e-3)
    assert len(np.unique(example.truth["points"][:, 0].round(1), axis=0)) == NUM_POINTS
    assert len(set(example.layers)) >= 4


def test_the_depth_under_a_visible_point_is_that_of_its_own_surface(example):
    truth = example.truth
    checked = 0
    for point, frame in zip(*np.nonzero(truth["points_visible"]), strict=True):
        column, row = truth["points"][point, frame].astype(int)
        wanted = example.surface_depth(example.layers[point], (column + 0.5, row + 0.5), frame)
        # float16 has 11 significant bits: rounding by up to 2**-11 of the value, and float32 rays on top.
        assert truth["depth"][frame, row, column] == pytest.approx(wanted, rel=2**-10)
        checked += 1
    assert checked > NUM_POINTS


def test_points_lifted_by_pose_and_depth_stay_put_on_what_stands_still(example):
    truth = example.truth
    num_objects = len(example.scene.objects)
    for point, layer in enumerate(example.layers):
        moves = FIRST_BILLBOARD <= layer < FIRST_BILLBOARD + num_objects
        lifted = [
            example.world(xy, example.surface_depth(layer, xy, frame), frame)
            for frame, xy in enumerate(truth["points"][point].astype(float))
        ]
        travelled = example.scene.billboards[layer - FIRST_BILLBOARD].centres if moves else np.zeros((NUM_FRAMES, 3))
        # Stored float32 pixels are right to 4e-6; on the far ground a pixel is up to a metre.
        np.testing.assert_allclose(lifted - travelled, np.tile(lifted[0] - travelled[0], (NUM_FRAMES, 1)), atol=1e-3)


def test_a_point_is_visible_exactly_where_the_depth_map_shows_its_surface(example):
    truth = example.truth
    for point, layer in enumerate(example.layers):
        for frame, (x, y) in enumerate(truth["points"][point]):
            if not (0 <= x < SIZE and 0 <= y < SIZE):
                assert not truth["points_visible"][point, frame]
                continue
            column, row = int(x), int(y)
            own = example.surface_depth(layer, (column + 0.5, row + 0.5), frame)
            shown = example.rendering.depth[frame, row, column]
            if truth["points_visible"][point, frame]:
                assert shown == pytest.approx(own, rel=1e-4)
            elif abs(shown - own) < 1e-3 * own:
                # Equal depth without the layer happens only where two surfaces meet: a pillar's foot or the wall's.
                assert {layer, example.rendering.layers[frame, row, column]} & {WALL, GROUND}


def test_a_box_holds_its_objects_points_and_pixels(example):
    truth = example.truth
    for number, box in enumerate(truth["boxes"]):
        mine = example.layers == FIRST_BILLBOARD + number
        inside = np.clip(truth["points"][mine], 0, SIZE)
        # The outline is sampled at 96 places and pixels count from half cover: half a pixel of slack.
        assert (inside >= box[None, :, :2] - 0.5).all()
        assert (inside <= box[None, :, 2:] + 0.5).all()
        for frame, row, column in zip(*np.nonzero(example.rendering.layers == FIRST_BILLBOARD + number), strict=True):
            left, top, right, bottom = box[frame]
            assert left - 0.5 <= column + 0.5 <= right + 0.5
            assert top - 0.5 <= row + 0.5 <= bottom + 0.5


def test_a_box_of_the_target_is_tight_where_nothing_hides_it():
    scene = draw_scene("clockwise", seed=1, num_frames=NUM_FRAMES, difficulty=0.0, camera_travel=0.5, camera_turn=4.0)
    rendering = render_scene(scene, size=SIZE)
    truth = annotate(scene, rendering, fps=12, seed=1)
    for frame in range(NUM_FRAMES):
        rows, columns = np.nonzero(rendering.layers[frame] == FIRST_BILLBOARD)
        shown = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # A pixel belongs to the object if its middle does: each side is right to half a pixel, narrow tips to one.
        np.testing.assert_allclose(truth["boxes"][0, frame], shown, atol=1.5)


def test_a_box_is_visible_where_a_tenth_of_the_object_shows(example):
    truth = example.truth
    for number in range(len(truth["boxes"])):
        shown = (example.rendering.layers == FIRST_BILLBOARD + number).sum(axis=(1, 2))
        assert not truth["boxes_visible"][number][shown == 0].any()
        box = truth["boxes"][number]
        area = (box[:, 2:] - box[:, :2]).prod(axis=-1)
        whole = ((box > 0) & (box < SIZE)).all(axis=-1)  # not clipped, so the box is the whole object's
        # An outline fills between half and all of its box.
        assert truth["boxes_visible"][number][whole & (shown >= 0.1 * area)].all()
        assert not truth["boxes_visible"][number][whole & (shown < 0.05 * area)].any()


def test_leaving_ends_out_of_sight():
    for seed in range(3):
        leaves = Example("leave", seed).truth
        assert not leaves["boxes_visible"][0, -1]
        assert (leaves["boxes"][0, -1, :2] == leaves["boxes"][0, -1, 2:]).any()


def test_the_intrinsics_are_a_pinhole_with_the_middle_of_the_frame_as_its_axis():
    matrix = intrinsics(128)
    assert matrix[0, 0] == matrix[1, 1] == pytest.approx(128 / 1.1)
    assert matrix[0, 2] == matrix[1, 2] == 64


def test_the_moments_are_exact_for_a_broadcast_frame_rate():
    scene = draw_scene("grow", seed=0, num_frames=3, difficulty=0.0, camera_travel=0.0, camera_turn=4.0)
    truth = annotate(scene, render_scene(scene, size=32), fps=Fraction(30000, 1001), seed=0)
    assert truth["pts_seconds"].tolist() == [0.0, 1001 / 30000, 2002 / 30000]
