import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vidflow.records import EpochResult, Reject, StageManifest, TrialResult
from vidflow.report.figures import strip_drawing
from vidflow.report.page import (
    Example,
    ReportData,
    TaskSection,
    render_page,
)
from vidflow.report.pictures import Picture

INLINE = {"b", "code", "span"}
VOID = {"meta", "link", "img", "br", "hr", "input", "source"}
EVIL = "<evil onerror='x'>&amp;\"</title></style>$"


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements, their attributes, and text outside of the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.space(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        self.space(tag)

    def space(self, tag: str) -> None:
        if tag not in INLINE:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)


def trial(core: str, seed: int, scores: list[float], **changes: object) -> TrialResult:
    history = tuple(
        EpochResult(
            epoch=n,
            metrics={"val/top1": s, "val/top1_low": s - 0.05, "val/top1_high": s + 0.04, "train/loss": 1 - s},
            seconds=10.0,
            is_best=s == max(scores[:n]),
        )
        for n, s in enumerate(scores, 1)
    )
    result = TrialResult(
        key=f"{core}{seed}",
        settings={"core": core, "seed": seed, "epochs": 3, "num_heads": None},
        status="completed",
        history=history,
        num_parameters=9_862_144,
        directory=Path("/runs/t"),
    )
    return dataclasses.replace(result, **changes)


TRIALS = [
    trial("mean", 0, [0.3, 0.4, 0.35]),
    trial("gru", 0, [0.5, 0.864, 0.7]),
    trial("gru", 1, [0.5, 0.6, 0.84]),
    trial("mean", 1, [0.2], status="failed", error="loss is nan"),
]


SECTION = TaskSection(
    task="classification",
    objective="val/top1",
    mode="max",
    trials=TRIALS,
    class_names=["jump", "run"],
    examples=[
        Example(frames=np.zeros((4, 8, 8, 3), np.uint8), key="k1", label="jump", predicted="run", probability=0.61)
    ],
    confusion=np.array([[30, 5], [2, 63]]),
)
OF_A_SECTION = {field.name for field in dataclasses.fields(TaskSection)}


def report(**changes: object) -> ReportData:
    """A report on one task; changes go to its section or to the report, whichever has a field of that name."""
    section = dataclasses.replace(SECTION, **{name: v for name, v in changes.items() if name in OF_A_SECTION})
    data = ReportData(
        title="Actions",
        config_yaml="root: runs/demo\n",
        sections=[section],
        stages=[
            StageManifest(
                stage="shard",
                fingerprint="beef",
                num_files=3,
                num_clips=1400,
                num_rejects=1,
                num_bytes=1_530_000,
                worker_seconds=150.0,
                wall_seconds=75.0,
            )
        ],
        rejects=[Reject(key="", path="a.mp4", stage="scan", reason="Truncated", message="ends early")],
        provenance={"torch": "2.14"},
    )
    return dataclasses.replace(data, **{name: v for name, v in changes.items() if name not in OF_A_SECTION})


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_page(report()))


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert {"html", "head", "body", "main", "style", "title"} <= {tag for tag, _ in page.elements}


def test_the_page_needs_nothing_from_outside_and_runs_nothing(page: Page) -> None:
    addresses = [value or "" for _, found in page.elements for name, value in found.items() if name in ("src", "href")]
    assert len(addresses) > 8
    assert [address[:40] for address in addresses if not address.startswith(("data:image/", "#"))] == []
    anchors = {address[1:] for address in addresses if address.startswith("#")}
    assert anchors <= {found["id"] for _, found in page.elements if "id" in found}
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    assert [name for _, found in page.elements for name in found if name.startswith("on")] == []
    assert not re.search(r"url\(|@import", page.html)
    policies = [found["content"] for tag, found in page.elements if "http-equiv" in found]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_headline_says_who_is_best_how_sure_that_is_and_how_many_failed(page: Page) -> None:
    assert "86.4 % val/top1 gru · seed 0 The best of 4 trials, after epoch 2 of 3, with 9.86 M trained" in page.text
    assert "Its 95 % interval is 81.4 to 90.4 % on 100 validation clips." in page.text
    assert "The score of 1 other trial lies within it" in page.text
    assert "1 trial failed." in page.text


def test_trials_are_listed_best_first_with_one_marked_and_the_error_of_those_that_failed(page: Page) -> None:
    order = ["1 86.4 %", "2 84.0 %", "3 40.0 %", "4 — mean 1 9.86 M 1 of 1 10 s failed loss is nan"]
    places = [page.text.index(row) for row in order]
    assert places == sorted(places)
    assert [found.get("class") for tag, found in page.elements if tag == "tr"].count("best") == 1


def test_seeds_are_summed_up(page: Page) -> None:
    assert "core seeds mean lowest highest gru 2 85.2 % 84.0 % 86.4 % mean 1 40.0 % 40.0 % 40.0 %" in page.text
    alone = Page(render_page(report(trials=[TRIALS[0], TRIALS[1]])))
    assert "Over seeds" not in alone.text


def test_every_section_holds_its_content(page: Page) -> None:
    for words in (
        "jump run 5 of 35",  # confused pairs
        "0 jump 30 of 35 86 %",  # classes
        "✗ wrong run (61 %), in truth jump k1",
        "Truncated in scan: 1",
        "a.mp4 ends early 1",
        "shard 1 min 15 s 2 min 30 s 1.53 MB 3 1,400 1 beef",
        "torch 2.14",
        "root: runs/demo",
        "epochs 3 num_heads —",
    ):
        assert words in page.text
    assert page.count("img") == 4  # curves, settings, confusion, one strip


def test_text_from_outside_is_shown_and_never_obeyed() -> None:
    awkward = report(
        title=EVIL,
        config_yaml=EVIL,
        trials=[
            dataclasses.replace(TRIALS[1], settings={"core": EVIL, EVIL: 1}),
            dataclasses.replace(TRIALS[3], error=EVIL, status="failed"),
        ],
        class_names=[EVIL, "run"],
        rejects=[Reject(key=EVIL, path=EVIL, stage=EVIL, reason=EVIL, message=EVIL)],
        stages=[dataclasses.replace(report().stages[0], stage=EVIL, fingerprint=EVIL)],
        examples=[dataclasses.replace(SECTION.examples[0], key=EVIL, label=EVIL)],
        provenance={EVIL: EVIL},
        notices=[EVIL],
    )
    page = Page(render_page(awkward))
    assert page.open == []
    assert page.count("evil") == 0
    assert page.count("title") == page.count("style") == 1
    assert [name for _, found in page.elements for name in found if name.startswith("on")] == []
    assert page.text.count(EVIL) >= 18


def test_credentials_in_settings_or_messages_do_not_get_onto_the_page() -> None:
    address = "https://me:hunter2@host/x?token=hunter2"
    data = report(
        config_yaml=f"tracking:\n  uri: {address}\n",
        provenance={"mlflow": address},
        rejects=[Reject(key="", path=address, stage="scan", reason="Missing", message=f"no {address}")],
        trials=[*TRIALS[:3], dataclasses.replace(TRIALS[3], error=address)],
        notices=[address],
    )
    assert "hunter2" not in render_page(data)


def test_what_must_be_known_first_stands_before_every_number() -> None:
    page = Page(render_page(report(notices=["The encoder's weights are random."])))
    assert page.text.index("The encoder's weights are random.") < page.text.index("86.4 %")
    assert [found.get("role") for _, found in page.elements].count("alert") == 1
    assert 'role="alert"' not in render_page(report())


def test_a_long_list_of_rejects_is_folded_and_cut_but_counted() -> None:
    rejects = [Reject(key="", path=f"{n:05d}.mp4", stage="scan", reason="Truncated", message="m") for n in range(1234)]
    page = Page(render_page(report(rejects=rejects)))
    assert "1,234 inputs could not be used" in page.text
    assert "00199.mp4" in page.text
    assert "00200.mp4" not in page.text
    assert "and 1,034 more" in page.text
    assert [found for tag, found in page.elements if tag == "details" and "open" in found] == []


@pytest.mark.parametrize("trials", [[], [TRIALS[3]], [dataclasses.replace(TRIALS[0], history=())]])
def test_a_sweep_without_a_result_has_a_page_that_says_so(trials: list[TrialResult]) -> None:
    page = Page(render_page(report(trials=trials, confusion=None, examples=[], stages=[], rejects=[])))
    assert page.open == []
    assert "No trial has a result yet" in page.text
    assert "Nothing: every input was used." in page.text


def test_a_task_without_classes_is_reported_by_its_own_metric_where_less_is_better() -> None:
    history = (EpochResult(epoch=1, metrics={"val/abs_rel": 0.12345}, seconds=1.0, is_best=True),)
    worse = (EpochResult(epoch=1, metrics={"val/abs_rel": 0.3}, seconds=1.0, is_best=True),)
    trials = [
        dataclasses.replace(TRIALS[0], history=worse),
        dataclasses.replace(TRIALS[1], history=history),
    ]
    example = dataclasses.replace(SECTION.examples[0], label="", predicted="", probability=None)
    page = Page(
        render_page(
            report(
                trials=trials, objective="val/abs_rel", mode="min", class_names=[], confusion=None, examples=[example]
            )
        )
    )
    assert "0.1235 val/abs_rel gru The best of 2 trials" in page.text
    assert "(lower is better)" in page.text
    assert "interval is" not in page.text
    assert "wrong" not in page.text


def test_a_single_trial_is_its_own_headline() -> None:
    page = Page(render_page(report(trials=[TRIALS[1]])))
    assert "86.4 % val/top1 gru The best of 1 trial, after" in page.text


PICTURE = Picture(
    content=strip_drawing(np.zeros((2, 8, 8, 3), np.uint8)), kind="jpeg", scale=2, caption="miou 0.61", key="k7"
)
BOXES = TaskSection(
    task="box_tracking",
    objective="val/miou",
    mode="max",
    trials=[
        dataclasses.replace(TRIALS[0], history=(EpochResult(epoch=1, metrics={"val/miou": 0.5}, is_best=True),)),
        dataclasses.replace(TRIALS[3], error="no boxes"),
    ],
    baseline={"val/miou": 0.2},
    baseline_answer="the box stays",
    pictures=[PICTURE],
)


def test_the_trivial_answer_stands_in_the_table_and_beside_the_headline() -> None:
    page = Page(render_page(report(baseline={"val/top1": 0.35}, baseline_answer="the usual class")))
    assert "Without looking one gets 35.0 %: the usual class." in page.text
    assert "1 86.4 % +51.4 points 81.4 to 90.4 % gru" in page.text
    assert "4 — mean 1" in page.text  # a failed trial is compared with nothing
    assert "35.0 % without looking: the usual class" in page.text
    assert "without looking" not in render_page(report()).lower()


def test_the_trivial_answer_lies_on_the_scale_of_the_scores() -> None:
    page = Page(render_page(report(baseline={"val/top1": 0.1}, baseline_answer="the usual class")))
    marks = [found["style"] for _, found in page.elements if found.get("class") == "floor"]
    assert marks == ["left:0.00%"]  # the smallest number of all is at the left end


def test_several_tasks_have_an_overview_and_a_part_each_with_places_of_their_own() -> None:
    page = Page(render_page(report(sections=[dataclasses.replace(SECTION, baseline={"val/top1": 0.35}), BOXES])))
    assert page.open == []
    places = [found["id"] for _, found in page.elements if "id" in found]
    assert len(places) == len(set(places))
    anchors = {found["href"][1:] for tag, found in page.elements if tag == "a"}
    assert anchors <= set(places)
    assert {"classification-headline", "box_tracking-headline", "box_tracking-pictures"} <= set(places)
    assert "classification val/top1 ↑ 86.4 % 35.0 % +51.4 points" in page.text
    assert "box tracking val/miou ↑ 0.5 0.2 +150 % the box stays" in page.text
    assert "1 trial failed." in page.text
    assert "miou 0.61 k7" in page.text
    assert page.text.index("Every task at its best") < page.text.index("86.4 % val/top1")


def test_a_single_task_has_no_overview() -> None:
    page = Page(render_page(report(sections=[BOXES])))
    assert "Every task" not in page.text
    assert "headline" in {found.get("id") for _, found in page.elements}


def test_text_of_a_picture_is_shown_and_never_obeyed() -> None:
    evil = dataclasses.replace(BOXES, pictures=[dataclasses.replace(PICTURE, caption=EVIL, key=EVIL)])
    page = Page(render_page(report(sections=[dataclasses.replace(evil, baseline_answer=EVIL)])))
    assert page.open == []
    assert page.count("evil") == 0
    assert page.text.count(EVIL) == 4
