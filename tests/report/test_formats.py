import pytest

from vidflow.report.formats import (
    format_bytes,
    format_change,
    format_interval,
    format_magnitude,
    format_metric,
    format_seconds,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1_530_000_000, "1.53 GB"), (2.5e15, "2.5e+03 TB")],
)
def test_sizes_have_a_unit_and_three_digits(number: float, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (7, "7"), (4_140, "4.14 k"), (9_862_144, "9.86 M"), (1.2e9, "1.2 B")]
)
def test_parameters_have_a_unit_and_three_digits(number: float, text: str) -> None:
    assert format_magnitude(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.5, "9.5 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7384, "2 h 3 min")]
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_shares_are_percentages_and_other_metrics_are_plain_numbers() -> None:
    assert format_metric("val/top1", 0.8641) == "86.4 %"
    assert format_metric("val/rpe_translation_mm", 12.34567) == "12.35"
    assert format_metric("val/top1", None) == "—"
    assert format_interval("val/top1", 0.79, 0.922) == "79.0 to 92.2 %"
    assert format_interval("val/miou", 0.5, 0.61) == "0.5 to 0.61"


def test_a_change_is_in_points_for_shares_and_else_in_parts_of_what_is_to_beat() -> None:
    assert format_change("val/top1", 0.864, 0.1) == "+76.4 points"
    assert format_change("val/abs_rel", 0.1, 0.25) == "-60 %"
    assert format_change("val/miou", 0.5, 0.2) == "+150 %"
    assert format_change("val/miou", 0.5, 0.0) == "+0.5"
