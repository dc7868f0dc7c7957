"""Wait for a machine that can hold a worker, say what is missing meanwhile, and give up after the stated time."""

import logging
import time
from typing import Any

import ray

from pipelines.placement import Placement, find_misfit
from pipelines.ray_session import list_machines
from vidflow.errors import VidflowError

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_FIRST_LINE = 20.0
_SECONDS_BETWEEN_LINES = 60.0
log = logging.getLogger("vidflow")


class RoomWatch:
    """Watches a command that has no worker at all."""

    def __init__(self, name: str, placement: Placement) -> None:
        """Start the clocks.

        Args:
            name: What waits, such as `shard`.
            placement: What each worker takes.
        """
        self._name, self._placement = name, placement
        self.note_worker()

    def note_worker(self) -> None:
        """Take in that there is a worker, so there was room."""
        now = time.monotonic()
        self._fitted, self._look_at, self._say_at, self._said = now, now, now, ""

    def look(self) -> None:
        """Say why there is no worker.

        Raises:
            VidflowError: If for `wait_seconds` no machine could hold one.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _SECONDS_BETWEEN_LOOKS
        misfit = find_misfit(self._placement, list_machines())
        if not misfit:
            self._fitted = now
            self._say(f"{self._name}: no worker yet; the CPUs and GPUs that it takes are in use or it still starts")
        elif now - self._fitted >= self._placement.wait_seconds:
            raise VidflowError(
                f"{misfit}; waited {self._placement.wait_seconds:g} s for another (resources.wait_for_nodes_seconds); "
                "start one, or let workers take less"
            )
        else:
            self._say(f"{self._name}: {misfit}; waits up to {self._placement.wait_seconds:g} s for another")

    def _say(self, line: str) -> None:
        """Log a line: a new one soon, the same one now and then."""
        now = time.monotonic()
        if line != self._said:
            self._said, self._say_at = line, now + (0 if "no worker fits" in line else _SECONDS_TO_FIRST_LINE)
        if now >= self._say_at:
            self._say_at = now + _SECONDS_BETWEEN_LINES
            log.info("%s", line)


class _Demand:
    """Takes what a worker takes, so that an autoscaler sees what is missing."""


def wait_for_room(name: str, placement: Placement) -> None:
    """Return when some machine can hold a worker.

    Raises:
        VidflowError: If for `placement.wait_seconds` none could.
    """
    if not find_misfit(placement, list_machines()):
        return
    process = ray.remote(_Demand).options(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus)
    demands: list[Any] = [process.remote() for _ in range(placement.processes)]
    watch = RoomWatch(name, placement)
    try:
        while find_misfit(placement, list_machines()):
            watch.look()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for demand in demands:
            ray.kill(demand)


__all__ = ["RoomWatch", "wait_for_room"]
