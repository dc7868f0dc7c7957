"""The page about an evaluation: accuracy against cost of pre-trained classifiers with token reduction."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal, assert_never

from vidflow.stages.evaluation.points import Point, group_seeds
from vidflow.stages.evaluation.results import ModelResult, PointResult

CostAxis = Literal["gmacs", "clips_per_second"]
COST_AXES: dict[CostAxis, str] = {"gmacs": "GMACs per clip, counted", "clips_per_second": "clips per second, measured"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """Points that differ only in their seed.

    Attributes:
        point: The first of them.
        seeds: All of them.
        score: Mean top-1 accuracy over seeds.
        low: Smallest lower bound over seeds of the 95 percent interval.
        high: Largest upper bound.
        gmacs: Giga multiply-accumulates per clip.
        clips_per_second: Mean over seeds; None if not measured.
        fronts: Costs at which no other point of the model is as cheap and as good.
    """

    point: Point
    seeds: tuple[PointResult, ...]
    score: float
    low: float
    high: float
    gmacs: float
    clips_per_second: float | None
    fronts: frozenset[CostAxis] = frozenset()

    def at(self, axis: CostAxis) -> float | None:
        """Return a cost as it is drawn."""
        match axis:
            case "gmacs":
                return self.gmacs
            case "clips_per_second":
                return self.clips_per_second
            case _:
                assert_never(axis)

    def mean_of(self, name: str) -> float | None:
        """Return the mean over seeds of a metric; None if it was not measured."""
        values = [each.metrics[name] for each in self.seeds if name in each.metrics]
        return fmean(values) if values else None


def series_points(result: ModelResult) -> list[SeriesPoint]:
    """Return the points of a model with their seeds joined, and mark those on a front."""
    by_point = {each.point: each for each in result.points}
    made = [_join([by_point[point] for point in group]) for group in group_seeds(list(by_point)).values()]
    return [_with_fronts(each, made) for each in made]


def is_behind(point: SeriesPoint, others: Sequence[SeriesPoint], axis: CostAxis) -> bool:
    """Whether another point is at least as cheap and as good, and better in one; an unknown cost is behind."""
    ours = _cheapness(point, axis)
    if ours is None:
        return True
    for other in others:
        theirs = _cheapness(other, axis)
        if theirs is None or theirs < ours or other.score < point.score:
            continue
        if theirs > ours or other.score > point.score:
            return True
    return False


def points_csv(results: Sequence[ModelResult]) -> str:
    """Return a row per point with everything that was measured."""
    rows: list[dict[str, Any]] = [
        {
            **asdict(each.point),
            **each.metrics,
            "tokens_per_block": " ".join(map(str, each.cost.tokens)),
        }
        for result in results
        for each in result.points
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def describe_figure(result: ModelResult, points: Sequence[SeriesPoint]) -> str:
    """Return what a reader who cannot see the figure needs: the ends of every series."""
    base = points[0]
    parts = [f"{result.name} without reduction: {100 * base.score:.1f} % at {base.gmacs:.3g} GMACs"]
    series: dict[str, SeriesPoint] = {}
    for point in points[1:]:
        name = f"{point.point.mode.replace('_', ' ')}, {point.point.schedule}"
        if name not in series or point.gmacs < series[name].gmacs:
            series[name] = point
    parts += [f"{name}: {100 * each.score:.1f} % at {each.gmacs:.3g} GMACs" for name, each in series.items()]
    return f"Top-1 accuracy against cost. {'; '.join(parts)}."


def _join(group: Sequence[PointResult]) -> SeriesPoint:
    mains = [each.main.top1 for each in group]
    speeds = [each.clips_per_second for each in group if each.clips_per_second is not None]
    return SeriesPoint(
        point=group[0].point,
        seeds=tuple(group),
        score=fmean(each.value for each in mains),
        low=min(each.low for each in mains),
        high=max(each.high for each in mains),
        gmacs=group[0].cost.macs / 1e9,
        clips_per_second=fmean(speeds) if speeds else None,
    )


def _with_fronts(point: SeriesPoint, others: Sequence[SeriesPoint]) -> SeriesPoint:
    fronts = frozenset(axis for axis in COST_AXES if not is_behind(point, others, axis))
    return replace(point, fronts=fronts)


def _cheapness(point: SeriesPoint, axis: CostAxis) -> float | None:
    cost = point.at(axis)
    return -cost if cost is not None and axis == "gmacs" else cost


__all__ = [
    "COST_AXES",
    "CostAxis",
    "SeriesPoint",
    "describe_figure",
    "is_behind",
    "points_csv",
    "series_points",
]
