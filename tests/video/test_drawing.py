import numpy as np
import pytest

from vidflow.video.drawing import caption, colour_depth, draw_prediction

GREY = np.full((241, 321, 3), 128, np.uint8)
ROW = {"index": 0, "pts_seconds": 1.5}


@pytest.mark.parametrize("shape", [(33, 47), (64, 64), (481, 641), (2160, 3840), (1920, 1081)])
def test_pictures_have_even_sides_and_a_readable_size(shape):
    drawn = draw_prediction(np.zeros((*shape, 3), np.uint8), [ROW])
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert 240 <= drawn.shape[0] - 30 <= 720


def test_a_box_is_drawn_around_its_content_and_nowhere_else():
    plain = draw_prediction(GREY, [ROW]).astype(int)
    drawn = draw_prediction(GREY, [{**ROW, "boxes": [[100, 60, 200, 160]]}]).astype(int)
    rows, columns = np.nonzero(np.abs(drawn - plain).sum(-1))
    # The frame of 321 pixels is drawn 320 wide, and lines are up to 3 pixels wide.
    assert abs(rows.min() - 60) <= 3
    assert abs(rows.max() - 160) <= 3
    assert abs(columns.min() - 100) <= 3
    assert abs(columns.max() - 200) <= 3
    assert (drawn[90:150, 130:190] == plain[90:150, 130:190]).all()


def test_a_point_that_is_hidden_is_hollow_and_leaves_a_track():
    def at(x, visible):
        return {**ROW, "points": [{"x": x, "y": 100.0, "visible": visible, "confidence": 0.9}]}

    seen = draw_prediction(GREY, [at(50.0, True), at(150.0, True)])
    hidden = draw_prediction(GREY, [at(150.0, False)])
    plain = draw_prediction(GREY, [ROW])
    assert (seen[100, 150] != plain[100, 150]).any()
    assert (seen[100, 100] != plain[100, 100]).any()
    assert (hidden[100, 100] == plain[100, 100]).all()
    assert (hidden[100, 150] == plain[100, 150]).all()
    assert (hidden != plain).any()


def test_a_box_that_an_untrained_head_turned_inside_out_is_still_drawn():
    assert (draw_prediction(GREY, [{**ROW, "boxes": [[200, 160, 100, 60]]}]) != draw_prediction(GREY, [ROW])).any()


def test_depth_stands_beside_the_frame_and_near_is_lighter_than_far():
    depth = np.linspace(1, 5, 16 * 16, dtype=np.float32).reshape(16, 16)
    row = {**ROW, "depth": {"min_metres": 1.0, "median_metres": 3.0, "max_metres": 5.0}}
    plain, drawn = draw_prediction(GREY, [row]), draw_prediction(GREY, [row], depth=depth)
    assert drawn.shape[1] - plain.shape[1] == plain.shape[0] - 30
    assert (drawn[:-30, : plain.shape[1]] == plain[:-30]).all()
    light = colour_depth(depth).astype(int).sum(-1).ravel()
    assert (np.diff(light) <= 0).all()
    assert light[0] > light[-1]
    assert (colour_depth(np.ones((4, 4), np.float32)) == colour_depth(np.zeros((4, 4), np.float32))).all()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"classes": [{"name": "jump", "probability": 0.875}]}, "jump  88%   1.50 s"),
        ({"depth": {"min_metres": 1.0, "median_metres": 2.0, "max_metres": 3.5}}, "1.00 to 3.50 m   1.50 s"),
        ({"camera_motion": {"translation_metres": [0.1, -0.2, 0.0]}}, "camera moved +0.100 -0.200 +0.000 m   1.50 s"),
        ({"camera_motion": None}, "1.50 s"),
    ],
)
def test_the_caption_says_what_is_predicted(row, text):
    assert caption({**ROW, **row}) == text
