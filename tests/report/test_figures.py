import io
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidflow.records import EpochResult, TrialResult
from vidflow.report.figures import confusion_figure, curves_figure, settings_figure, strip_image
from vidflow.report.tables import RankedTrial, SeedGroup, group_by_seed, rank_trials

AWKWARD = "costs $5 and $\\frac{ more, 走る"


def ranked(cores: list[str], num_epochs: int = 5) -> list[RankedTrial]:
    trials = []
    for seed, core in enumerate(cores):
        history = tuple(
            EpochResult(
                epoch=n,
                metrics={
                    "val/top1": 0.1 * n - 0.01 * seed,
                    "val/top1_low": 0.1 * n - 0.08,
                    "val/top1_high": 0.1 * n + 0.08,
                    "train/loss": 1 / n,
                },
                is_best=True,
            )
            for n in range(1, num_epochs + 1)
        )
        settings = {"core": core, "seed": seed}
        trials.append(
            TrialResult(
                key=str(seed),
                settings=settings,
                status="completed",
                history=history,
                num_parameters=1,
                directory=Path(),
            )
        )
    return rank_trials(trials, "val/top1", "max")


def groups(cores: list[str]) -> list[SeedGroup]:
    return group_by_seed(ranked(cores), "max")


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def curves(rows: list[RankedTrial]) -> np.ndarray:
    metrics = ["val/top1", "val/absent", "train/loss"]
    return pixels(curves_figure(rows, metrics, colour_by="core", is_share={"val/top1": True}))


def has_colour(image: np.ndarray, colour: str) -> bool:
    """Whether a good number of pixels have exactly this colour, as the middle of a line or a mark has."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((image == wanted).all(-1).sum()) > 50


def test_every_core_has_its_own_colour_in_the_curves() -> None:
    blue, orange, green = "#0072b2", "#d55e00", "#009e73"
    two = curves(ranked(["gru", "mean"]))
    assert [has_colour(two, colour) for colour in (blue, orange, green)] == [True, True, False]
    three = curves(ranked(["gru", "mean", "mamba"]))
    assert [has_colour(three, colour) for colour in (blue, orange, green)] == [True, True, True]


def test_curves_can_be_drawn_of_one_epoch_of_no_metric_and_of_values_that_are_no_numbers() -> None:
    assert curves(ranked(["gru"], num_epochs=1)).size
    assert pixels(curves_figure(ranked(["gru"]), ["absent"], colour_by="core", is_share={})).size
    broken = TrialResult(
        key="",
        settings={},
        status="failed",
        history=(EpochResult(epoch=1, metrics={"train/loss": math.nan}),),
        num_parameters=0,
        directory=Path(),
    )
    assert curves(rank_trials([broken], "val/top1", "max")).size


def test_a_group_of_settings_takes_a_row_and_no_more_than_thirty_are_drawn() -> None:
    def height(cores: list[str]) -> int:
        return pixels(settings_figure(groups(cores), "val/top1", colour_by="core", is_share=True)).shape[0]

    assert height(["a"]) == height(["a", "a", "a"])
    assert height(["a"]) < height(["a", "b"]) < height([f"{n}" for n in range(30)])
    assert height([f"{n}" for n in range(40)]) == height([f"{n}" for n in range(30)])


@pytest.mark.parametrize("num_classes", [2, 5, 25, 26, 60, 61, 174])
def test_a_confusion_matrix_of_any_size_is_legible_and_of_bounded_size(num_classes: int) -> None:
    confusion = np.eye(num_classes, dtype=int) * 3
    png = confusion_figure(confusion, [f"class {n}" for n in range(num_classes)])
    image = pixels(png)
    assert min(image.shape[:2]) > 300
    assert max(image.shape[:2]) < 2400
    assert len(png) < 400_000


def test_a_confusion_matrix_is_dark_where_the_clips_are() -> None:
    names = list("abcde")
    right = pixels(confusion_figure(np.eye(5, dtype=int), names)).mean(-1)
    wrong = pixels(confusion_figure(np.eye(5, dtype=int)[::-1].copy(), names)).mean(-1)
    # The two differ only within the square of cells; there, one is the other upside down but for the digits.
    rows, columns = np.nonzero(right != wrong)
    box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert np.abs(right[box] - wrong[box][::-1]).mean() < 3  # of 255; edges of cells may be off by a pixel
    assert right[box][:20, :20].mean() + 100 < right[box][-20:, :20].mean()


def test_an_empty_class_leaves_an_empty_row() -> None:
    confusion = np.array([[3, 1], [0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert confusion_figure(confusion, ["a", "b"])


def test_names_are_drawn_as_they_are_written() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert confusion_figure(np.eye(2, dtype=int), [AWKWARD, "b" * 300])
        assert curves(ranked([AWKWARD, "gru"])).size
        assert settings_figure(groups([AWKWARD]), "val/$top1$", colour_by="core", is_share=False)


def test_pictures_of_the_same_numbers_are_the_same_bytes() -> None:
    first, second = (confusion_figure(np.eye(4, dtype=int), list("abcd")) for _ in range(2))
    assert first == second


def test_a_strip_shows_the_first_and_the_last_frame_in_order_of_time() -> None:
    frames = np.zeros((16, 20, 40, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 240, 16).astype(np.uint8)[:, None, None]
    strip = pixels(strip_image(frames, num_frames=4, height=50))
    assert strip.shape == (50, 4 * 100 + 3 * 3, 3)
    reds = [int(strip[25, n * 103 + 50, 0]) for n in range(4)]
    # JPEG at quality 85 keeps a flat colour to a few levels; frames 0, 5, 10 and 15 are wanted.
    assert reds == pytest.approx([0, 80, 160, 240], abs=6)


def test_a_strip_of_a_short_clip_has_every_frame_once() -> None:
    frames = np.zeros((3, 10, 10, 3), dtype=np.uint8)
    assert pixels(strip_image(frames, num_frames=8, height=10)).shape == (10, 3 * 10 + 2 * 3, 3)
    assert pixels(strip_image(frames[:1], num_frames=8, height=10)).shape == (10, 10, 3)
