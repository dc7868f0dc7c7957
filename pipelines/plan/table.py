"""A plan's lines, and the table that shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.plan.measure import DiskSpeed
from pipelines.plan.record import StageCost
from vidflow.report.formats import format_bytes, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One line of the plan.

    Attributes:
        stage: `synth`, `scan`, `shard`, `extract/NAME`, `extract/NAME-dense` or `sweep`.
        cost: Remaining cost; None if the stage is done.
        num_units: Number of videos, clips or trials.
        stored_bytes: Bytes that are already on disk.
        num_workers: Workers that share the seconds.
        tokens_per_frame: Tokens per frame of a feature set.
        gflops_per_frame: GFLOPs per frame of its encoder.
        num_passes: Epochs of all trials that read a feature set.
        recompute_seconds: Seconds of those passes if each of them computed the features again.
        read_seconds: Seconds of those passes if they read the features from disk, including one write.
    """

    stage: str
    cost: StageCost | None
    num_units: int
    num_workers: int
    stored_bytes: int = 0
    tokens_per_frame: float | None = None
    gflops_per_frame: float | None = None
    num_passes: int = 0
    recompute_seconds: float = 0.0
    read_seconds: float = 0.0

    @property
    def cheaper(self) -> str:
        """`cache` or `recompute`, whichever takes less time for features; empty for other stages."""
        if not self.num_passes:
            return ""
        return "cache" if self.read_seconds <= self.recompute_seconds else "recompute"


def table(stages: Sequence[PlannedStage], disk: DiskSpeed, free: float) -> list[str]:
    """Return the lines of the printed plan."""
    lines = [
        f"{'stage':<32} {'units':>9} {'tokens':>7} {'GFLOPs':>8} {'worker time':>12} {'wall':>11} {'on disk':>10}"
        "  state"
    ]
    lines += [_row(line) for line in stages]
    costs = [line.cost for line in stages if line.cost is not None]
    wall = sum(line.cost.seconds / line.num_workers for line in stages if line.cost is not None)
    needed = sum(cost.num_bytes for cost in costs)
    lines.append(
        f"to do: {format_seconds(sum(cost.seconds for cost in costs))} of work, about {format_seconds(wall)} on this "
        f"machine besides starting workers; {format_bytes(needed)} more on disk, {format_bytes(free)} are free"
    )
    if needed > free:
        lines.append(f"NOT ENOUGH DISK: {format_bytes(needed - free)} short; reduce tokens, clips or feature sets")
    lines.append(f"disk: writes {format_bytes(disk.write)}/s, reads {format_bytes(disk.read)}/s")
    lines += [
        f"{line.stage}: {line.num_passes} passes take {format_seconds(line.read_seconds)} made once and read, "
        f"{format_seconds(line.recompute_seconds)} made anew in each -> {line.cheaper}"
        for line in stages
        if line.num_passes
    ]
    return lines


def _row(line: PlannedStage) -> str:
    tokens = "" if line.tokens_per_frame is None else f"{line.tokens_per_frame:.4g}"
    gflops = "" if line.gflops_per_frame is None else f"{line.gflops_per_frame:.3g}"
    cost = line.cost
    work = format_seconds(cost.seconds) if cost else ""
    wall = format_seconds(cost.seconds / line.num_workers) if cost else ""
    size = format_bytes(cost.num_bytes if cost else line.stored_bytes)
    state = "to do" if cost else "cached" if line.stage.startswith("extract/") else "done"
    return f"{line.stage:<32} {line.num_units:>9,} {tokens:>7} {gflops:>8} {work:>12} {wall:>11} {size:>10}  {state}"
