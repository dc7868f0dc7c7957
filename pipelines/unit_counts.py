"""Counts on the way from workers to the driver while units are in progress, through one small Ray actor.

They are for display alone: a lost count costs nothing, and what a stage commits never depends on one.
"""

import functools
import itertools
import time
from collections.abc import Collection
from typing import Any

import ray

_SECONDS_BETWEEN_REPORTS = 0.5
new_slot = itertools.count().__next__
"""Number of one attempt at one unit. Those of a worker that died are thereby not taken for those of the next one."""


class UnitCounts:
    """What workers have done so far, by slot; runs in a process of its own."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[int, int]] = {}

    def put(self, slot: int, num_done: int, num_rejects: int) -> None:
        """Keep what a worker has done in all of its unit."""
        self._counts[slot] = num_done, num_rejects

    def read(self, slots: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the numbers done and rejected in each of these slots, and forget all other slots."""
        self._counts = {slot: counts for slot, counts in self._counts.items() if slot in slots}
        return self._counts


@functools.cache
def session_counts() -> Any:
    """Return the one actor of this Ray session; a new session must clear this cache."""
    return ray.remote(UnitCounts).options(num_cpus=0, max_restarts=-1).remote()


class Reporter:
    """A worker's `Count`: adds up, and tells the actor now and then, without waiting for it."""

    def __init__(self, counts: Any, slot: int) -> None:
        """Start at nothing done.

        Args:
            counts: Handle of the actor.
            slot: Number of this attempt at the unit.
        """
        self._counts, self._slot = counts, slot
        self.num_done = self.num_rejects = 0
        self._told = 0.0

    def __call__(self, num_done: int, *, num_rejects: int = 0) -> None:
        """Add to what is done."""
        self.num_done += num_done
        self.num_rejects += num_rejects
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_REPORTS:
            self._told = now
            self._counts.put.remote(self._slot, self.num_done, self.num_rejects)


class Watch:
    """The driver's view of the units in progress; asks the actor without waiting for its answer."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._asked: Any = None
        self._known: dict[int, tuple[int, int]] = {}

    def look(self, slots: Collection[int]) -> tuple[int, int]:
        """Return how many are done and rejected in these slots, as of the newest answer."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            try:
                self._known = ray.get(self._asked)
            except ray.exceptions.RayActorError:
                self._known = {}  # Ray starts it again
            self._asked = None
        if self._asked is None:
            self._asked = session_counts().read.remote(frozenset(slots))
        known = [self._known[slot] for slot in slots if slot in self._known]
        return sum(done for done, _ in known), sum(rejects for _, rejects in known)
