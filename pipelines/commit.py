"""Make the files of a stage that are missing, unit by unit; clips that kill their worker are found and left out."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pipelines.isolation import leave_out_killers
from pipelines.placement import Placement
from pipelines.ray_pool import map_units
from vidflow.counts import Count
from vidflow.store.layout import FileEntry, committed_entries, remove_leftovers


class FileUnit(Protocol):
    """A unit of work that becomes one file."""

    @property
    def file(self) -> str:
        """Name of the file within the stage's folder."""


Filed = TypeVar("Filed", bound=FileUnit)
log = logging.getLogger("vidflow")


def commit_units(
    directory: Path,
    build: Callable[[], Callable[[Filed, Count], FileEntry]],
    units: Sequence[Filed],
    placement: Placement,
    *,
    name: str,
    num_clips: Callable[[Filed], int],
    is_current: Callable[[Filed, FileEntry], bool] | None = None,
    isolates: bool = False,
) -> tuple[list[FileEntry], list[FileEntry]]:
    """Make the files of `units` that are not committed yet or are out of date.

    Args:
        directory: Folder of the stage.
        build: Makes the worker; it commits one file per unit.
        units: Units whose `file` is the name of the file that the worker commits.
        placement: Resources of a worker.
        name: Name shown beside the progress.
        num_clips: How many clips a unit has.
        is_current: Whether a committed file is up to date for its unit; None takes every file as up to date.
        isolates: Whether the unit has the fields `only` and `left_out`: its clips can be tried, and left out.

    Returns:
        The entries of all units in their order, and the entries of the files made by this call.

    Raises:
        VidflowError: If a unit has killed `placement.attempts` workers and cannot be isolated.
    """
    remove_leftovers(directory)
    done = {}
    for unit, entry in zip(units, committed_entries(directory, [unit.file for unit in units]), strict=True):
        if entry is not None and (is_current is None or is_current(unit, entry)):
            done[unit.file] = entry.without_members()
    waiting = [unit for unit in units if unit.file not in done]
    if done:
        log.info("%s: %d of %d files are there already", name, len(done), len(units))
    made: list[FileEntry] = []
    killers: list[Filed] | None = [] if isolates else None
    while waiting:
        sizes = [num_clips(unit) for unit in waiting]
        made += map_units(build, waiting, placement, name=name, sizes=sizes, counted="clips", killers=killers)
        if not killers:
            break
        waiting = leave_out_killers(build, killers, placement, name=name, num_clips=num_clips)
        killers = None  # it was found, so nothing kills any more
    remove_leftovers(directory)  # of workers that died
    done.update((entry.file, entry) for entry in made)
    return [done[unit.file] for unit in units], made
