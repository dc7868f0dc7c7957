import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidflow.models.tasks.coordinates import FourierEncoding, QueryEncoder, box_overlap, to_centers, to_corners

unit = st.floats(0, 1, width=32)
corners = st.tuples(unit, unit, unit, unit).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)


def test_bases_are_sines_then_cosines_coordinate_after_coordinate():
    encoded = FourierEncoding(3)(torch.tensor([0.3, 0.8], dtype=torch.float64))
    expected = [f(math.pi * 2**k * x) for x in (0.3, 0.8) for f in (math.sin, math.cos) for k in range(3)]
    torch.testing.assert_close(encoded, torch.tensor(expected, dtype=torch.float64))


def test_half_precision_coordinates_are_encoded_in_single_precision():
    encoder = QueryEncoder(2, 8, hidden_dim=4, num_frequencies=16).half()
    assert encoder.fourier(torch.tensor([0.3, 0.8]).half()).dtype == torch.float32
    assert torch.isfinite(encoder.fourier.freqs).all()
    assert encoder(torch.tensor([0.3, 0.8])).dtype == torch.float16


@given(box=corners)
def test_corners_and_centers_are_inverse(box):
    boxes = torch.tensor(box, dtype=torch.float64)
    torch.testing.assert_close(to_corners(to_centers(boxes)), boxes)


@given(first=corners, second=corners)
@settings(max_examples=50)
def test_overlap_is_that_of_cells_counted_one_by_one(first, second):
    side = 16
    # Corners on a grid, so that counting cells is exact.
    first, second = ([round(x * side) for x in box] for box in (first, second))

    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    one, two = cells(first), cells(second)
    hull = cells(
        [min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])]
    )
    iou = len(one & two) / len(one | two) if one | two else 0.0
    gap = (len(hull) - len(one | two)) / len(hull) if hull else 0.0
    result = box_overlap(*(torch.tensor(box, dtype=torch.float64) / side for box in (first, second)))
    torch.testing.assert_close(torch.stack(result), torch.tensor([iou, iou - gap], dtype=torch.float64))


def test_an_inverted_box_overlaps_nothing():
    iou, _ = box_overlap(torch.tensor([0.6, 0.6, 0.4, 0.4]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert iou == 0
