"""What a plan says about several nodes: an extrapolation from one worker that was measured on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.placement import Machine, Part, check_fit, count_fitting, place_workers
from pipelines.plan.table import PlannedStage
from pipelines.shard import VIDEOS_PER_SCAN
from vidflow.config.schema import Config
from vidflow.errors import ConfigError
from vidflow.report.formats import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Nodes that are alike.

    Attributes:
        number: How many.
        num_cpus: CPU cores of each; None: as many as here.
        num_gpus: GPUs of each; None: as many as here.
    """

    number: int
    num_cpus: int | None = None
    num_gpus: int | None = None

    def machines(self, here: Machine) -> list[Machine]:
        """Return the nodes, with the kind of GPU of this machine.

        Raises:
            ConfigError: If they have GPUs and this machine has none, so that nothing is known about their speed.
        """
        num_gpus = here.num_gpus if self.num_gpus is None else self.num_gpus
        if num_gpus and not here.num_gpus:
            raise ConfigError(
                f"--node-gpus: got {num_gpus}, but this machine has no GPU, so it cannot measure one; run `vidflow "
                "plan` on a node with a GPU, or leave --node-gpus out to plan for CPUs"
            )
        num_cpus = here.num_cpus if self.num_cpus is None else self.num_cpus
        return [Machine(num_cpus=num_cpus, num_gpus=num_gpus, gpu=here.gpu if num_gpus else "")] * self.number


def extrapolate(stages: Sequence[PlannedStage], config: Config, machines: Sequence[Machine]) -> list[str]:
    """Return lines about the wall time on several nodes.

    A unit of work is not divided: 3 shards on 2 workers take as long as 4. Stages follow each other.

    Args:
        stages: The lines of the plan.
        config: The experiment.
        machines: The nodes.

    Raises:
        ConfigError: If a worker fits on none of them.
    """
    rows, total = [], 0.0
    for line in stages:
        if line.cost is None:
            continue
        part = _part_of(line)
        placement = place_workers(config.resources, part, machines)
        check_fit(placement, machines, config.resources)
        units, fitting = _num_units(line, config), count_fitting(placement, machines)
        workers = min(units, placement.workers or fitting, fitting)
        wall = line.cost.seconds / placement.processes / units * -(-units // workers)
        total += wall
        rows.append(
            (line.stage, format_seconds(wall), f"{workers} worker{'s' * (workers > 1)}, {units:,} {_UNITS[part]}")
        )
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    node = machines[0]
    here = sum(line.cost.seconds / line.num_workers for line in stages if line.cost is not None)
    return [
        "",
        f"EXTRAPOLATION to {len(machines)} node{'s' * (len(machines) > 1)} of {node.num_cpus:g} CPU and "
        f"{node.num_gpus:g} GPU, from one worker of each stage measured on this machine:",
        *(f"  {name:<{widths[0]}}  {wall:>{widths[1]}}  {what}" for name, wall, what in rows),
        f"  in all about {format_seconds(total)}, against {format_seconds(here)} on this machine",
        "It assumes that every worker is as fast as the one here, though all share the network and the storage, and "
        "leaves out starting nodes and workers.",
    ]


_UNITS = {"shard": "units of work", "extract": "files", "trials": "trials"}


def _part_of(line: PlannedStage) -> Part:
    return "extract" if line.features else "trials" if line.stage == "sweep" else "shard"


def _num_units(line: PlannedStage, config: Config) -> int:
    """Return how many pieces of work a stage has that different workers can do."""
    size = 1 if line.stage in ("synth", "sweep") else config.shards.clips_per_shard
    return max(1, -(-line.num_units // (VIDEOS_PER_SCAN if line.stage == "scan" else size)))


__all__ = ["Nodes", "extrapolate"]
