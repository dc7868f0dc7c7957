"""A plan's lines, and the table that shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.plan.core_cost import CoreMacs
from pipelines.plan.measure import DiskSpeed
from pipelines.plan.record import StageCost
from vidflow.report.formats import format_bytes, format_seconds
from vidflow.stages.cost import TrialMacs

_MAX_NAMES = 3  # feature sets that one line names


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialKind:
    """Trials that cost the same.

    Attributes:
        name: Their core, with their features if those make a difference.
        num_trials: How many there are; the expected number if a search draws them.
        epochs: Epochs of each.
        epoch_seconds: Worker seconds of an epoch.
        macs: What the encoder takes in them; None if it does not run.
        core_macs: What VTM and the adapter in front of a core take; None if they have neither.
    """

    name: str
    num_trials: float
    epochs: int
    epoch_seconds: float
    macs: TrialMacs | None = None
    core_macs: CoreMacs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One line of the plan.

    Attributes:
        stage: `synth`, `scan`, `shard`, `extract/NAME`, `extract/NAME-dense` or `sweep`.
        cost: Remaining cost; None if the stage is done.
        num_units: Number of videos, clips or trials.
        stored_bytes: Bytes that are already on disk.
        num_workers: Workers that share the seconds.
        num_frames: Frames of a clip.
        tokens_per_frame: Tokens per frame of a feature set.
        gflops_per_frame: GFLOPs per frame of its encoder; 0 if it is made from cached tokens.
        processes: Processes of each trial; `num_workers` counts them.
        num_passes: Epochs of all trials that read a feature set.
        recompute_seconds: Seconds of those passes if each of them computed the features again.
        read_seconds: Seconds of those passes if they read the features from disk, including one write.
        kinds: The trials of a sweep, those of equal cost together.
    """

    stage: str
    cost: StageCost | None
    num_units: int
    num_workers: int
    stored_bytes: int = 0
    num_frames: int = 1
    tokens_per_frame: float | None = None
    gflops_per_frame: float | None = None
    processes: int = 1
    num_passes: int = 0
    recompute_seconds: float = 0.0
    read_seconds: float = 0.0
    kinds: tuple[TrialKind, ...] = ()

    @property
    def cheaper(self) -> str:
        """`cache` or `recompute`, whichever takes less time for features; empty for other stages."""
        if not self.num_passes:
            return ""
        return "cache" if self.read_seconds <= self.recompute_seconds else "recompute"

    @property
    def features(self) -> str:
        """Name of the feature set; empty for other stages."""
        return self.stage.removeprefix("extract/") if self.stage.startswith("extract/") else ""

    @property
    def counts(self) -> tuple[str, ...]:
        """Tokens and GFLOPs per frame as they are printed; none for other stages."""
        tokens = [] if self.tokens_per_frame is None else [f"{self.tokens_per_frame:.4g} tokens"]
        is_known = self.gflops_per_frame is not None and self.gflops_per_frame > 0
        return (*tokens, *([f"{self.gflops_per_frame:.3g} GFLOPs"] if is_known else []))


Row = tuple[str, ...]
_HEAD = ("command", "what it does", "how many", "each", "work", "wall here", "on disk")
_IS_RIGHT = (False, False, False, False, True, True, True)
_VIDEOS, _CLIPS, _TRIALS = "video", "clip", "trial"
_STAGES = {
    "synth": ("synth", "render videos", _VIDEOS),
    "scan": ("shard", "scan videos", _VIDEOS),
    "shard": ("shard", "decode and pack", _CLIPS),
    "sweep": ("sweep", "train", _TRIALS),
}


def table(stages: Sequence[PlannedStage], disk: DiskSpeed, free: float | None) -> list[str]:
    """Return the lines of the printed plan; `free` is None if the root is in an object store."""
    rows = [_HEAD, *(row for group in _fold(stages) for row in _rows(group))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    costs = [line.cost for line in stages if line.cost is not None]
    wall = sum(line.cost.seconds / line.num_workers for line in stages if line.cost is not None)
    needed = sum(cost.num_bytes for cost in costs)
    lines = [_align(row, widths) for row in rows]
    lines += [
        "",
        f"to do: {format_seconds(sum(cost.seconds for cost in costs))} of work, about {format_seconds(wall)} on this "
        f"machine besides starting workers; {format_bytes(needed)} more "
        + ("in the object store" if free is None else f"on disk, {format_bytes(free)} are free"),
    ]
    if free is not None and needed > free:
        lines.append(f"NOT ENOUGH DISK: {format_bytes(needed - free)} short; reduce tokens, clips or feature sets")
    lines.append(f"disk: writes {format_bytes(disk.write)} and reads {format_bytes(disk.read)} per second")
    if free is None:
        lines.append("that is this machine's cache; the object store is not measured, and copying takes more time")
    return [*lines, *_compare_ways(stages)]


def _align(row: Row, widths: Sequence[int]) -> str:
    cells = zip(row, widths, _IS_RIGHT, strict=True)
    return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()


def _fold(stages: Sequence[PlannedStage]) -> list[list[PlannedStage]]:
    """Put feature sets together that have equal clips, tokens and GFLOPs, if all are done or all are to do."""
    groups: dict[object, list[PlannedStage]] = {}
    for line in stages:
        key = (line.num_units, line.counts, line.cost is None) if line.features else line.stage
        groups.setdefault(key, []).append(line)
    return list(groups.values())


def _rows(group: Sequence[PlannedStage]) -> list[Row]:
    """Return the row of a stage, or of feature sets that are alike, and rows that explain it."""
    line = group[0]
    command, what, unit = _STAGES.get(line.stage, ("extract", _name_features(group), _CLIPS))
    what += f", {line.processes} processes each" if line.processes > 1 else ""
    costs = [each.cost for each in group if each.cost is not None]
    num_bytes = sum(cost.num_bytes for cost in costs) if costs else sum(each.stored_bytes for each in group)
    size = format_bytes(num_bytes) if num_bytes else ""
    number = f"{len(group)} x " * (len(group) > 1) + _count(line.num_units, unit)
    if line.features and line.num_frames > 1:
        number += f" of {line.num_frames} frames"
    below = [_blank(each=f"{' and '.join(line.counts)} per frame")] if line.counts else []
    if not costs:
        return [(command, what, number, "done", "", "", size), *below]
    seconds = sum(cost.seconds for cost in costs)
    each = _describe_each(line, seconds / len(group), num_bytes / len(group), unit)
    if len(line.kinds) == 1:
        number, each = _describe_kind(line.kinds[0])
    for kind in line.kinds:
        below += [_kind_row(kind)] if len(line.kinds) > 1 else []
        below += [_blank(each=_describe_macs(kind.macs))] if kind.macs is not None else []
        below += [_blank(each=_describe_core(kind.core_macs))] if kind.core_macs is not None else []
    return [(command, what, number, each, *map(format_seconds, (seconds, seconds / line.num_workers)), size), *below]


def _describe_each(line: PlannedStage, seconds: float, num_bytes: float, unit: str) -> str:
    """Return what one unit takes; empty for trials, which have rows of their own."""
    if line.kinds:
        return ""
    number = max(1, line.num_units)
    if not line.features:
        return f"{_short(seconds / number)} per {unit}"
    return f"{_short(seconds / number / line.num_frames)} per frame, {format_bytes(num_bytes / number)} per clip"


def _describe_kind(kind: TrialKind) -> tuple[str, str]:
    """Return how many trials take how long, and why."""
    return (
        f"{_count(kind.num_trials, _TRIALS)} x {format_seconds(kind.epochs * kind.epoch_seconds)}",
        f"{_count(kind.epochs, 'epoch')}, {_short(kind.epoch_seconds)} per epoch",
    )


def _kind_row(kind: TrialKind) -> Row:
    number, each = _describe_kind(kind)
    work = format_seconds(kind.num_trials * kind.epochs * kind.epoch_seconds)
    return ("", f"  {kind.name}", f"  {number}", each, work, "", "")


def _describe_macs(macs: TrialMacs) -> str:
    """Return what the encoder takes, in multiply-accumulates, which papers mostly print as FLOPs, of all clips."""
    of_video = f" ({macs.clips_per_video * macs.forward / 1e9:.4g} per video of {macs.clips_per_video} clips)"
    more = f", {macs.training / 1e9:.4g} in training" if macs.training > macs.forward else ""
    return f"encoder: {macs.forward / 1e9:.4g} GMACs per clip{of_video if macs.clips_per_video > 1 else ''}{more}"


def _describe_core(macs: CoreMacs) -> str:
    """Return what VTM and the adapter take, in multiply-accumulates."""
    adapter = [f"adapter: {macs.adapter / 1e9:.3g} GMACs per clip"] if macs.adapter else []
    if macs.vtm is None:
        return adapter[0]
    before, after = macs.vtm_tokens
    return "; ".join([f"vtm: {macs.vtm / 1e9:.3g} GMACs per clip, {before:,} tokens become {after:,}", *adapter])


def _blank(each: str) -> Row:
    return ("", "", "", each, "", "", "")


def _name_features(group: Sequence[PlannedStage]) -> str:
    return f"{'reduce' if group[0].gflops_per_frame == 0 else 'encode'} {_list_names(group)}"


def _list_names(group: Sequence[PlannedStage]) -> str:
    names = ", ".join(line.features for line in group[:_MAX_NAMES])
    return f"{names} and {len(group) - _MAX_NAMES} more" if len(group) > _MAX_NAMES else names


def _compare_ways(stages: Sequence[PlannedStage]) -> list[str]:
    """Say for all feature sets alike whether to make them once, or anew in each epoch."""
    lines = []
    for way, advice in (("cache", "cached is faster"), ("recompute", "encoding anew would be faster")):
        group = [line for line in stages if line.cheaper == way]
        if group:
            lines.append(
                f"features {_list_names(group)}: read in {_count(sum(line.num_passes for line in group), 'epoch')} of "
                f"all trials; {format_seconds(sum(line.read_seconds for line in group))} if made once and cached, "
                f"{format_seconds(sum(line.recompute_seconds for line in group))} if made anew in every epoch -> "
                f"{advice}"
            )
    return lines


def _count(number: float, unit: str) -> str:
    return f"1 {unit}" if number == 1 else f"{number:,.6g} {unit}s"


def _short(seconds: float) -> str:
    return format_seconds(seconds) if seconds >= 1 else f"{1000 * seconds:.3g} ms"
