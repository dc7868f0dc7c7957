"""Counts for a dashboard: what the driver does, as metrics that Ray offers to Prometheus with `ray_` before each name.

They are for people who watch; no work depends on one. infra/README.md says how to look at them.
"""

import functools

from ray.util.metrics import Counter, Gauge

CLIPS = "vidflow_clips_total"
REJECTS = "vidflow_rejects_total"
WAITING = "vidflow_units_waiting"
WORKERS = "vidflow_workers"


def count_clips(stage: str, number: int) -> None:
    """Add the clips (of a scan: the files) that a stage has finished."""
    _count(CLIPS, "Clips that a stage has finished", stage, number)


def count_rejects(stage: str, number: int) -> None:
    """Add the rejects that a stage has found."""
    _count(REJECTS, "Inputs that a stage has rejected", stage, number)


def show_waiting(stage: str, number: int) -> None:
    """Show how many units of a stage no worker has begun."""
    _gauge(WAITING, "Units of a stage that no worker has begun").set(number, {"stage": stage})


def show_workers(stage: str, number: int) -> None:
    """Show how many workers a stage has now."""
    _gauge(WORKERS, "Workers of a stage").set(number, {"stage": stage})


def _count(name: str, description: str, stage: str, number: int) -> None:
    if number > 0:  # Ray refuses to add nothing
        _counter(name, description).inc(number, {"stage": stage})


# Made when first used, once in a process: Ray's metrics belong to the process and not to its session.
@functools.cache
def _counter(name: str, description: str) -> Counter:
    return Counter(name, description, tag_keys=("stage",))


@functools.cache
def _gauge(name: str, description: str) -> Gauge:
    return Gauge(name, description, tag_keys=("stage",))
