"""Score against cost of feature sets: which are on the front, how random ones of equal cost score, which one to use.

Axes: T frames, N patches of a frame, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, assert_never

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from vidflow.config.tasks import Mode
from vidflow.records import TrialResult
from vidflow.report.tables import SeedGroup, group_by_seed, rank_trials
from vidflow.stages.cost import FeatureCost

Axis = Literal["tokens", "gflops", "seconds", "bytes"]
AXES: dict[Axis, str] = {
    "tokens": "tokens per frame",
    "gflops": "encoder GFLOPs per frame",
    "seconds": "seconds per clip, measured",
    "bytes": "bytes per clip",
}
DROPS = (0.005, 0.01, 0.02)
"""Losses that a reader may accept: absolute for a share, relative for any other score."""
_SAME_COST = 0.02
"""Costs whose relative difference is smaller count as equal: patches are whole, and files differ by a few bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """The score of one feature set with one core.

    Attributes:
        cost: The feature set and what it costs.
        core: The core.
        group: Its trials, which differ only in their seed; the best such group if other settings differ too.
        mean: Mean score over seeds.
        low: Mean over seeds of the lower bounds of the 95 percent intervals over clips; None if there are none.
        high: Mean of the upper bounds.
        fronts: Costs at which no other set of this core is as cheap and as good.
        control: The best random set of this core with as many tokens; None if there is none.
    """

    cost: FeatureCost
    core: str
    group: SeedGroup
    mean: float
    low: float | None
    high: float | None
    fronts: frozenset[Axis] = frozenset()
    control: "ParetoPoint | None" = None

    def at(self, axis: Axis) -> float | None:
        """Return a cost; None if it is not known."""
        match axis:
            case "tokens":
                return self.cost.tokens_per_frame
            case "gflops":
                return self.cost.gflops_per_frame
            case "seconds":
                return self.cost.seconds_per_clip
            case "bytes":
                return self.cost.bytes_per_clip
            case _:
                assert_never(axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The cheapest feature sets of a core whose loss against a reference set is at most `drop`.

    Attributes:
        core: The core.
        drop: Accepted loss, as in `DROPS`.
        reference: The set without reduction or, if there is none, the set with most tokens.
        picks: Cost -> the cheapest set.
    """

    core: str
    drop: float
    reference: ParetoPoint
    picks: dict[Axis, ParetoPoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedClip:
    """A clip, and pictures of the tokens that each feature set made of it.

    Attributes:
        key: The clip's content key.
        rows: Names and frames; the first row is the clip itself.
    """

    key: str
    rows: tuple[tuple[str, UInt8[np.ndarray, "T H W 3"]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoSection:
    """Everything that the page shows about the feature sets of one task.

    Attributes:
        task: The task.
        objective: Metric that is the score.
        mode: Whether more of it is better.
        points: Every feature set with every core, core by core, most tokens first.
        choices: Which feature set to use.
        clips: Pictures of the merged patches.
    """

    task: str
    objective: str
    mode: Mode
    points: Sequence[ParetoPoint]
    choices: Sequence[Choice]
    clips: Sequence[MergedClip] = ()


def compare_features(
    trials: Sequence[TrialResult],
    costs: Mapping[str, FeatureCost],
    *,
    task: str,
    objective: str,
    mode: Mode,
    is_share: bool,
    clips: Sequence[MergedClip] = (),
) -> ParetoSection | None:
    """Compare the scores of a task's trials with the costs of their feature sets; None if all use the same set.

    Args:
        trials: Results in any order.
        costs: What each feature set costs, by name.
        task: The task.
        objective: Metric that is the score.
        mode: Whether more of it is better.
        is_share: Whether the score is a share, whose losses are counted in points.
        clips: Pictures for the section.
    """
    ours = [trial for trial in trials if trial.settings["task"] == task and trial.settings["features"] in costs]
    points = pareto_points(group_by_seed(rank_trials(ours, objective, mode), mode), costs, mode)
    if len({point.cost.name for point in points}) < 2:
        return None
    choices = choose(points, mode=mode, is_share=is_share)
    return ParetoSection(task=task, objective=objective, mode=mode, points=points, choices=choices, clips=clips)


def pareto_points(groups: Sequence[SeedGroup], costs: Mapping[str, FeatureCost], mode: Mode) -> list[ParetoPoint]:
    """Return one point per core and feature set, core by core, most tokens first.

    Args:
        groups: Trials grouped by everything but their seed, best first.
        costs: What each feature set costs, by name.
        mode: Whether more of the score is better.
    """
    best: dict[tuple[str, str], ParetoPoint] = {}
    for group in groups:
        settings = group.trials[0].result.settings
        core, name = str(settings["core"]), str(settings["features"])
        best.setdefault((core, name), _point(group, costs[name], core))
    points = sorted(best.values(), key=lambda point: (point.core, -point.cost.tokens_per_frame, point.cost.name))
    return [_placed(point, [other for other in points if other.core == point.core], mode) for point in points]


def is_dominated(point: ParetoPoint, others: Sequence[ParetoPoint], axis: Axis, mode: Mode) -> bool:
    """Whether another point costs no more and scores no worse, and is better in cost or score.

    Costs within two percent are equal. A point with an unknown cost is dominated.
    """
    cost = point.at(axis)
    if cost is None:
        return True
    score = _goodness(point, mode)
    for other in others:
        theirs = other.at(axis)
        if theirs is None or theirs > cost * (1 + _SAME_COST) or _goodness(other, mode) < score:
            continue
        if theirs < cost * (1 - _SAME_COST) or _goodness(other, mode) > score:
            return True
    return False


def choose(points: Sequence[ParetoPoint], *, mode: Mode, is_share: bool) -> list[Choice]:
    """Return the cheapest sets for each core and accepted loss; of equally cheap sets, the one with the best score."""
    choices = []
    for core in dict.fromkeys(point.core for point in points):
        ours = [point for point in points if point.core == core]
        reference = next((p for p in ours if not p.cost.is_reduced), ours[0])
        for drop in DROPS:
            allowed = drop if is_share else drop * abs(reference.mean)
            # 1e-9, because a loss of exactly one point must not be refused for a rounding error.
            fit = [p for p in ours if _goodness(p, mode) >= _goodness(reference, mode) - allowed - 1e-9]
            picks = {axis: pick for axis in AXES if (pick := _cheapest(fit, axis, mode)) is not None}
            choices.append(Choice(core=core, drop=drop, reference=reference, picks=picks))
    return choices


def resolution(points: Sequence[ParetoPoint]) -> float | None:
    """Return half the width of the narrowest interval; smaller differences may be chance. None without intervals."""
    widths = [(p.high - p.low) / 2 for p in points if p.low is not None and p.high is not None]
    return min(widths, default=None)


def for_all_frames(values: Shaped[np.ndarray, "F ..."], num_frames: int) -> Shaped[np.ndarray, "T ..."]:
    """Repeat what belongs to an output frame of the encoder for each of the clip's frames that it stands for."""
    return values.repeat(num_frames // len(values), axis=0)


def tint_tokens(
    frames: UInt8[np.ndarray, "T H W 3"], assignment: Int[np.ndarray, "T N"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "T H W 3"]:
    """Tint the patches of each token in the token's mean colour and outline them; make dropped patches dark grey.

    Args:
        frames: The whole frames that were encoded.
        assignment: Token of each patch, numbered through the clip; -1 if the patch was dropped.
        grid: Patches per column and row.
    """
    num_frames, height, width = frames.shape[:3]
    rows, columns = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    tokens = assignment.reshape(num_frames, *grid)[:, rows][:, :, columns]
    # Dropped patches share one extra token, after the last.
    index = np.where(tokens < 0, assignment.max() + 1, tokens).ravel()
    colours = frames.reshape(-1, 3).astype(np.float64)
    sums = np.stack([np.bincount(index, channel) for channel in colours.T], axis=-1)
    means = sums / np.maximum(np.bincount(index), 1)[:, None]
    tinted = (0.8 * means[index] + 0.2 * colours).reshape(frames.shape)
    grey = np.broadcast_to(0.3 * frames.mean(axis=-1, keepdims=True), frames.shape)
    tinted = np.where((tokens < 0)[..., None], grey, tinted)
    edges = np.zeros(tokens.shape, dtype=bool)
    edges[:, 1:] |= tokens[:, 1:] != tokens[:, :-1]
    edges[:, :, 1:] |= tokens[:, :, 1:] != tokens[:, :, :-1]
    tinted[edges] *= 0.55
    return np.rint(tinted).astype(np.uint8)


def _point(group: SeedGroup, cost: FeatureCost, core: str) -> ParetoPoint:
    lows = [row.low for row in group.trials if row.low is not None]
    highs = [row.high for row in group.trials if row.high is not None]
    has_interval = len(lows) == len(highs) == len(group.trials)
    return ParetoPoint(
        cost=cost,
        core=core,
        group=group,
        mean=group.mean,
        low=fmean(lows) if has_interval else None,
        high=fmean(highs) if has_interval else None,
    )


def _placed(point: ParetoPoint, others: Sequence[ParetoPoint], mode: Mode) -> ParetoPoint:
    """Return a point with its fronts and its control, found among the points of its core."""
    tokens = point.cost.tokens_per_frame
    controls = [
        other
        for other in others
        if other.cost.is_random and abs(other.cost.tokens_per_frame - tokens) <= _SAME_COST * tokens
    ]
    has_control = point.cost.is_reduced and not point.cost.is_random and controls
    return replace(
        point,
        fronts=frozenset(axis for axis in AXES if not is_dominated(point, others, axis, mode)),
        control=max(controls, key=lambda other: _goodness(other, mode)) if has_control else None,
    )


def _cheapest(points: Sequence[ParetoPoint], axis: Axis, mode: Mode) -> ParetoPoint | None:
    """Return the best of the points whose cost equals the lowest one."""
    priced = [(cost, point) for point in points if (cost := point.at(axis)) is not None]
    least = min((cost for cost, _ in priced), default=0.0)
    cheap = [point for cost, point in priced if cost <= least * (1 + _SAME_COST)]
    return max(cheap, key=lambda point: _goodness(point, mode), default=None)


def _goodness(point: ParetoPoint, mode: Mode) -> float:
    return point.mean if mode == "max" else -point.mean
