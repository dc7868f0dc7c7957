import dataclasses

import numpy as np
from test_page import SECTION, TRIALS, Page, report, trial

from vidflow.report.alts import describe_change, describe_confusion, describe_curves
from vidflow.report.changes import Answers, choose_rival, compare_answers
from vidflow.report.page import render_page
from vidflow.report.tables import rank_trials

NAMES = ["jump", "run", "sit"]
KEYS = ["a", "b", "c", "d", "e"]
LABELS = np.array([0, 0, 1, 1, 2])
RANKED = rank_trials(TRIALS, "val/top1", "max")
BEST = Answers(keys=KEYS, labels=LABELS, predicted=np.array([0, 0, 1, 0, 0]))
# The other trial's feature set has the clips in another order, and one clip less.
OTHER = Answers(keys=["d", "c", "b", "a"], labels=LABELS[[3, 2, 1, 0]], predicted=np.array([1, 1, 1, 1]))


def change():
    return compare_answers(BEST, OTHER, rival=RANKED[2], is_baseline=True)


def test_the_best_is_compared_with_the_core_that_sees_no_order_else_with_other_settings() -> None:
    assert [choose_rival(RANKED, "max")[0].result.key, choose_rival(RANKED, "max")[1]] == ["mean0", True]
    no_mean = rank_trials([trial("gru", 0, [0.9]), trial("gru", 1, [0.8]), trial("mamba", 0, [0.7])], "val/top1", "max")
    assert [choose_rival(no_mean, "max")[0].result.key, choose_rival(no_mean, "max")[1]] == ["mamba0", False]
    assert choose_rival(no_mean[:2], "max")[0].result.key == "gru1"
    assert choose_rival(RANKED[:1], "max") is None


def test_clips_are_matched_by_key_and_counted_by_class_the_largest_gain_first() -> None:
    found = change()
    assert [(each.label, each.before, each.after, each.total) for each in found.classes] == [(0, 0, 2, 2), (1, 2, 1, 2)]
    assert [each.change for each in found.classes] == [1.0, -0.5]
    assert (found.gained, found.lost) == (["a", "b"], ["d"])


def test_texts_for_readers_who_do_not_see_the_figures_say_what_the_data_say() -> None:
    def percent(value: float | None) -> str:
        return f"{100 * (value or 0):.0f} %"

    assert describe_curves(RANKED, "val/top1", percent) == (
        "Learning curves of 4 trials; val/top1: gru · seed 1 ends highest at 84 %, mean · seed 1 ends lowest at 20 %"
    )
    assert describe_confusion(np.array([[30, 5], [2, 63]]), NAMES) == (
        "Confusion matrix of 2 classes: 93 of 100 clips right; most often jump is taken for run, 5 of 35"
    )
    assert "93 of 100 videos right" in describe_confusion(np.array([[30, 5], [2, 63]]), NAMES, "video")
    assert describe_change(change(), "gru", "mean", NAMES) == (
        "Share right by class, from mean to gru: 1 of 2 classes gain, most jump with +100 points; "
        "1 lose, most run with -50 points"
    )


def test_the_page_names_the_clips_that_changed_by_their_video_and_links_them_to_their_frames() -> None:
    clip = dataclasses.replace(SECTION.examples[0], key="a")
    page = Page(
        render_page(
            report(
                class_names=NAMES,
                change=change(),
                examples=[clip],
                others=[dataclasses.replace(clip, key="d")],
                confused_clips={(0, 1): ["b"]},
                sources={"a": "jump/1.mp4", "b": "jump/2.mp4", "d": "run/1.mp4"},
            )
        )
    )
    assert page.open == []
    assert "2 clips only gru · seed 0 gets right, 1 only mean · seed 0." in page.text
    links = {found["href"] for tag, found in page.elements if tag == "a"}
    assert {"#clip-a", "#clip-d"} <= links
    assert "#clip-b" not in links  # its frames are not on the page
    for name in ("jump/1.mp4", "jump/2.mp4", "run/1.mp4"):
        assert name in page.text
    assert "1 more clip that the tables name" in page.text
