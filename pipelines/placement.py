"""Where workers run: the numbers behind `num_gpus: auto` and `resources.device`, and one line that says so."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vidflow.config.schema import Config, Resources, TrialResources
from vidflow.errors import ConfigError, VidflowError

Part = Literal["shard", "extract", "trials"]
Device = Literal["cpu", "cuda"]

PARTS: dict[str, tuple[Part, ...]] = {
    "synth": ("shard",),
    "shard": ("shard",),
    "extract": ("extract",),
    "calibrate": ("extract",),
    "evaluate": ("shard", "extract"),
    "sweep": ("trials",),
    "plan": ("extract", "trials"),
    "bench": ("shard", "extract", "trials"),
}
"""The sections of `resources` that a stage or a tool uses."""
_TRIAL_SHARE = 0.5
"""GPUs per trial: two share one, because a core steps through the frames one by one, in small kernels."""


class Machine(NamedTuple):
    """What one machine of a cluster offers to workers.

    Attributes:
        num_cpus: CPU cores.
        num_gpus: GPUs.
        gpu: Name of its kind of GPU; empty if it is not known.
    """

    num_cpus: float
    num_gpus: float
    gpu: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What one worker of a part of the experiment takes, and where it computes.

    Attributes:
        part: The section of `resources`.
        num_cpus: CPU cores of each process.
        num_gpus: GPUs of each process, or a share of one.
        processes: Processes of a worker, which may run on different machines; 1 except for `trials`.
        workers: Largest number of workers; None is as many as fit.
        attempts: How often a unit of work is tried if its worker dies.
        wait_seconds: How long workers wait for a machine that can hold one.
        device: Where it computes.
        words: The same for the log, such as `1 CPU and 1 GPU (of 2 GPUs, H100)`.
    """

    part: Part
    num_cpus: float
    num_gpus: float
    processes: int = 1
    workers: int | None
    attempts: int
    wait_seconds: float = 0.0
    device: Device
    words: str


def place_workers(resources: Resources, part: Part, machines: Sequence[Machine]) -> Placement:
    """Return what each worker of a part takes on these machines."""
    own = getattr(resources, part)
    processes = own.workers_per_trial if isinstance(own, TrialResources) else 1
    num_gpus = own.num_gpus if own.num_gpus != "auto" else _choose_gpus(resources, part, machines, processes)
    each = f"{own.num_cpus:g} CPU{_describe_gpus(resources, part, num_gpus, machines)}"
    return Placement(
        part=part,
        num_cpus=own.num_cpus,
        num_gpus=num_gpus,
        processes=processes,
        workers=own.workers,
        attempts=own.attempts,
        wait_seconds=resources.wait_for_nodes_seconds,
        device="cuda" if num_gpus and resources.device != "cpu" else "cpu",
        words=f"{processes} processes of {each}" if processes > 1 else each,
    )


def count_fitting(placement: Placement, machines: Sequence[Machine]) -> int:
    """Return how many workers fit on the machines at the same time."""
    return sum(_count_on(placement, machine) for machine in machines) // placement.processes


def check_fit(placement: Placement, machines: Sequence[Machine], resources: Resources) -> None:
    """Check that a worker fits on some machine, and that it has a GPU if `resources.device` asks for one.

    Raises:
        ConfigError: If it does not; Ray would wait for a better machine for ever.
    """
    check_device(placement, resources)
    if resources.device == "cuda" and placement.part != "shard" and not _sum_gpus(machines):
        raise ConfigError("resources.device: got cuda, but there is no GPU; use auto or cpu, or give workers GPUs")
    if problem := find_misfit(placement, machines):
        raise ConfigError(problem)


def check_device(placement: Placement, resources: Resources) -> None:
    """Check that workers take a GPU if `resources.device` asks for one.

    Raises:
        ConfigError: If they take none.
    """
    if resources.device == "cuda" and placement.part != "shard" and not placement.num_gpus:
        raise ConfigError(
            f"resources.device: got cuda, but resources.{placement.part}.num_gpus is 0; use auto or cpu, or give "
            "workers GPUs"
        )


def find_misfit(placement: Placement, machines: Sequence[Machine]) -> str:
    """Return why no worker fits on these machines; empty if one does."""
    if count_fitting(placement, machines):
        return ""
    largest = (
        ", ".join(f"{each.num_cpus:g} CPU and {each.num_gpus:g} GPU" for each in dict.fromkeys(machines)) or "none"
    )
    if any(_count_on(placement, each) for each in machines):
        name = "workers_per_trial"
    else:
        name = "num_gpus" if placement.num_gpus > max((each.num_gpus for each in machines), default=0) else "num_cpus"
    times = f"{placement.processes} times " if placement.processes > 1 else ""
    return (
        f"resources.{placement.part}.{name}: no worker fits, each takes {times}{placement.num_cpus:g} CPU and "
        f"{placement.num_gpus:g} GPU; the machines have {largest}"
    )


def ray_address(config: Config) -> str:
    """Return the address of the cluster that the settings or `RAY_ADDRESS` name; `local` if neither names one."""
    return config.resources.ray_address or os.environ.get("RAY_ADDRESS") or "local"


def usable_device(placement: Placement) -> Device:
    """Return where this worker computes.

    Raises:
        VidflowError: If that is a GPU and torch sees none, which would otherwise be a traceback or a slow run.
    """
    import torch  # here, because the import takes seconds

    if placement.device == "cuda" and not torch.cuda.is_available():
        raise VidflowError(
            f"{placement.part}: Ray gave this worker {placement.num_gpus:g} GPU, but torch {torch.__version__} sees "
            f"none; install a torch for this GPU, or set resources.device=cpu or resources.{placement.part}.num_gpus=0"
        )
    return placement.device


def this_machine() -> list[Machine]:
    """Return the machine that this process runs on, as a cluster of one."""
    import torch  # here, because the import takes seconds

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [Machine(num_cpus=os.cpu_count() or 1, num_gpus=len(gpus), gpu=gpus[0] if gpus else "")]


def _choose_gpus(resources: Resources, part: Part, machines: Sequence[Machine], processes: int) -> float:
    # A GPU that is asked for by name may be one that the cluster does not have yet.
    is_wanted = resources.device == "cuda" or (resources.device == "auto" and _sum_gpus(machines) > 0)
    if part == "shard" or not is_wanted:
        return 0.0
    # Processes that work together need a GPU each.
    return 1.0 if part == "extract" or processes > 1 else _TRIAL_SHARE


def _describe_gpus(resources: Resources, part: Part, num_gpus: float, machines: Sequence[Machine]) -> str:
    """Return which GPUs a worker has, or why it has none."""
    there, names = _sum_gpus(machines), dict.fromkeys(each.gpu for each in machines if each.gpu)
    if num_gpus:
        of = ", ".join([f"{there:g} GPU{'s' * (there != 1)}" if there else "none yet", *names])
        return f" and {num_gpus:g} GPU (of {of})" + (
            ", computing on CPU: resources.device is cpu" if resources.device == "cpu" else ""
        )
    if part == "shard":
        return ""
    if not there:
        return ", on CPU: no GPU here"
    return f", on CPU: {'resources.device is cpu' if resources.device == 'cpu' else f'resources.{part}.num_gpus is 0'}"


def _count_on(placement: Placement, machine: Machine) -> int:
    fitting = int(machine.num_cpus / placement.num_cpus)
    if not placement.num_gpus:
        return fitting
    # Workers with a share of a GPU share one; a share never spans two.
    on_gpus = (
        int(machine.num_gpus) * int(1 / placement.num_gpus)
        if placement.num_gpus < 1
        else int(machine.num_gpus / placement.num_gpus)
    )
    return min(fitting, on_gpus)


def _sum_gpus(machines: Sequence[Machine]) -> float:
    return sum(machine.num_gpus for machine in machines)


__all__ = [
    "PARTS",
    "Machine",
    "Part",
    "Placement",
    "check_device",
    "check_fit",
    "count_fitting",
    "find_misfit",
    "place_workers",
    "ray_address",
    "this_machine",
    "usable_device",
]
