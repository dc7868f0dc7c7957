import dataclasses
import io
import itertools

import numpy as np
from PIL import Image
from test_pareto import section

from vidflow.report.figures import pareto_figure


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def amount(png: bytes, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((pixels(png) == wanted).all(-1).sum())


def test_a_core_takes_a_row_of_panels() -> None:
    both = section()
    one = dataclasses.replace(both, points=[point for point in both.points if point.core == "gru"])
    heights = [pixels(pareto_figure(each, is_share=True)).shape[0] for each in (one, both)]
    assert heights[1] > 1.7 * heights[0]


def test_what_is_dominated_is_grey_and_chance_is_marked_wherever_it_stands() -> None:
    grey, blue, orange = "#aab2bb", "#0072b2", "#d55e00"
    found = section()
    marked = pareto_figure(found, is_share=True)
    dominated = [dataclasses.replace(point, fronts=frozenset()) for point in found.points]
    all_grey = pareto_figure(dataclasses.replace(found, points=dominated), is_share=True)
    assert amount(all_grey, grey) > amount(marked, grey) > 0
    assert amount(marked, blue) > amount(all_grey, blue)  # which has it in the legend alone
    assert amount(all_grey, orange) == amount(marked, orange) > 0


def test_costs_far_apart_and_costs_that_are_unknown_can_be_drawn() -> None:
    found = section()
    scaled = [
        dataclasses.replace(point, cost=dataclasses.replace(point.cost, bytes_per_clip=factor, gflops_per_frame=None))
        for point, factor in zip(found.points, itertools.cycle((1.0, 1e6)), strict=False)
    ]
    assert pixels(pareto_figure(dataclasses.replace(found, points=scaled), is_share=False)).size
