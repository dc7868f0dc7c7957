"""Find the clips that kill their worker: a unit is halved, and the halves again, until single clips are left.

Each part is tried as often as a unit, because a worker may also die for a reason that is not in the clip.
"""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pipelines.placement import Placement
from pipelines.ray_pool import map_units
from vidflow.counts import Count
from vidflow.errors import VidflowError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
log = logging.getLogger("vidflow")


class _Part(NamedTuple):
    """The clips `start` to `stop` (exclusive) of a unit that killed its worker."""

    unit: int
    start: int
    stop: int

    def halves(self) -> list["_Part"]:
        middle = (self.start + self.stop) // 2
        return [self._replace(stop=middle), self._replace(start=middle)]


def leave_out_killers(
    build: Callable[[], Callable[[Any, Count], Any]],
    units: Sequence[Any],
    placement: Placement,
    *,
    name: str,
    num_clips: Callable[[Any], int],
) -> list[Any]:
    """Return the units without the clips that kill their worker.

    Args:
        build: Makes the worker. If a unit has `only`, it tries these clips and commits nothing; clips in the unit's
            `left_out` become rejects.
        units: Units that have killed `placement.attempts` workers.
        placement: Resources of a worker.
        name: Name shown beside the progress.
        num_clips: How many clips a unit has.

    Raises:
        VidflowError: If no single clip kills a worker.
    """
    found: dict[int, list[int]] = defaultdict(list)
    deadly = [_Part(number, 0, num_clips(unit)) for number, unit in enumerate(units)]
    while deadly:
        for part in deadly:
            if part.stop - part.start == 1:
                found[part.unit].append(part.start)
        halves = [half for part in deadly if part.stop - part.start > 1 for half in part.halves()]
        deadly = _try_parts(build, units, halves, placement, name=name) if halves else []
    for number, unit in enumerate(units):
        if not found[number]:
            raise VidflowError(
                f"{name}: {unit.file} killed {placement.attempts} workers, but none of its {num_clips(unit)} clips "
                f"kills one alone; give resources.{placement.part} fewer workers or more memory, or use smaller shards"
            )
        num_all, num_left_out = num_clips(unit), len(found[number])
        log.warning("%s: %s: %d of %d clips kill their worker; left out", name, unit.file, num_left_out, num_all)
    return [dataclasses.replace(unit, left_out=tuple(sorted(found[number]))) for number, unit in enumerate(units)]


def _try_parts(
    build: Callable[[], Callable[[Any, Count], Any]],
    units: Sequence[Any],
    parts: Sequence[_Part],
    placement: Placement,
    *,
    name: str,
) -> list[_Part]:
    """Return the parts that kill their worker."""
    part_of = {(units[part.unit].file, part.start, part.stop): part for part in parts}
    tried = [dataclasses.replace(units[part.unit], only=(part.start, part.stop)) for part in parts]
    killers: list[Any] = []
    sizes = [part.stop - part.start for part in parts]
    searching = f"{name}: looking for the clip that kills its worker"
    for _ in map_units(build, tried, placement, name=searching, sizes=sizes, counted="clips", killers=killers):
        pass
    return [part_of[unit.file, *unit.only] for unit in killers]


def map_isolated(
    build: Callable[[], Callable[[Sequence[Unit], Count], Result]],
    batches: Sequence[Sequence[Unit]],
    placement: Placement,
    *,
    name: str,
    counted: str,
    give_up: Callable[[Unit], Result],
) -> Iterator[Result]:
    """Apply a worker to batches; one that kills its worker is halved until single items are left, which are given up.

    Args:
        build: Makes the worker.
        batches: Items in the portions in which workers get them.
        placement: Resources of a worker.
        name: Name shown beside the progress.
        counted: What the progress counts, in the plural.
        give_up: Returns the result of an item that kills its worker.
    """
    while batches:
        killers: list[Sequence[Unit]] = []
        sizes = [len(batch) for batch in batches]
        yield from map_units(build, batches, placement, name=name, sizes=sizes, counted=counted, killers=killers)
        rest: list[Sequence[Unit]] = []
        for batch in killers:
            if len(batch) == 1:
                log.warning("%s: 1 of the %s kills its worker; left out", name, counted)
                yield give_up(batch[0])
            else:
                rest += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        batches = rest


__all__ = ["leave_out_killers", "map_isolated"]
