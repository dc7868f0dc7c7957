import dataclasses

import numpy as np
import pytest
from test_page import EVIL, Page, report
from test_pareto import section

from vidflow.report.page import render_page
from vidflow.report.pareto import MergedClip

CLIP = MergedClip(
    key="k7", rows=(("frames", np.zeros((2, 8, 8, 3), np.uint8)), ("tome", np.zeros((2, 8, 8, 3), np.uint8)))
)


def test_the_section_has_the_figure_both_tables_and_a_strip_per_feature_set() -> None:
    page = Page(render_page(report(pareto=[dataclasses.replace(section(), clips=[CLIP])])))
    assert page.open == []
    assert page.text.count("Score against cost") == 2  # in the list of sections, and as a heading
    assert page.count("img") == 4 + 1 + 2
    for words in (
        "gru 1.0 points base, 91.0 % tome, 90.0 % 18, 2x tome, 90.0 % 2, 2x tome, 90.0 % 0.05 s, 2x tome, 90.0 %",
        "tome tome gru 90.0 % 87.0 to 92.0 % 2 90.0 % to 90.0 % 70.0 % 18 2 20 1.8 kB bytes, gflops, seconds, tokens",
        "adaptive adaptive gru 50.0 % 47.0 to 52.0 % 1 50.0 % to 50.0 % 12 — 30 1.2 kB seconds",
        "Intervals reach 2.5 points",
        "k7 frames tome",
    ):
        assert words in page.text.replace("\N{MULTIPLICATION SIGN}", "x")


def test_without_it_the_page_says_nothing_of_cost() -> None:
    assert "against cost" not in render_page(report())


@pytest.mark.slow
def test_two_tasks_have_a_section_each_whose_names_are_shown_and_never_obeyed() -> None:
    found = section()
    evil = [
        dataclasses.replace(point, core=EVIL, cost=dataclasses.replace(point.cost, name=EVIL, reducer=EVIL))
        for point in found.points
    ]
    clip = dataclasses.replace(CLIP, key=EVIL, rows=((EVIL, CLIP.rows[0][1]),))
    other = dataclasses.replace(found, points=evil, clips=[clip], task="depth", objective="val/abs_rel", mode="min")
    page = Page(render_page(report(pareto=[dataclasses.replace(found, points=found.points[:2]), other])))
    assert "Score against cost: depth" in page.text
    assert {"pareto-1", "pareto-2"} <= {each.get("id") for _, each in page.elements}
    assert page.open == []
    assert page.count("evil") == 0
