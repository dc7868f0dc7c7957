"""What stages share: a Ray session, a pool of workers that survives their deaths, progress, and the closing line."""

import contextlib
import functools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
import ray.exceptions
from tqdm import tqdm

from vidflow.config.schema import Config, StageResources
from vidflow.errors import VidflowError
from vidflow.store.layout import FileEntry, committed_entry, remove_leftovers

class FileUnit(Protocol):
    """A unit of work that becomes one file."""

    @property
    def file(self) -> str:
        """Name of the file within the stage's folder."""


Unit = TypeVar("Unit")
Filed = TypeVar("Filed", bound=FileUnit)
Result = TypeVar("Result")
log = logging.getLogger("vidflow")


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Join the cluster that the config or `RAY_ADDRESS` names, or start a local one; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    address = config.resources.ray_address or os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False}
    # A worker that asks for no GPU must still see none; this is Ray's coming default, chosen now to keep it quiet.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    started = time.monotonic()
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True, **local)
    log.info("ray: %s, ready in %.1f s", address or "local", time.monotonic() - started)
    try:
        yield
    finally:
        ray.shutdown()


def num_hosts() -> int:
    """Return the number of living hosts of the cluster."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def map_units(
    build: Callable[[], Callable[[Unit], Result]],
    units: Sequence[Unit],
    resources: StageResources,
    *,
    name: str,
) -> Iterator[Result]:
    """Apply a worker to every unit on Ray actors and yield results as they come.

    One unit is in flight per actor, so nothing piles up in the object store. When a worker dies its unit
    goes to a fresh one, up to `resources.attempts` times.

    Args:
        build: Makes the worker, once per actor; sent to the actor by reference.
        units: What each call takes; seconds of work, not milliseconds.
        resources: What an actor takes and how many there are.
        name: Shown beside the progress.

    Raises:
        VidflowError: If one unit has killed `attempts` workers.
    """
    make = functools.partial(_start_actor, build, resources)
    waiting = deque((unit, 1) for unit in units)
    idle = [make() for _ in range(_num_actors(resources, len(units)))]
    running: dict[Any, tuple[Any, Unit, int]] = {}
    with tqdm(total=len(units), desc=name, unit="unit", file=sys.stderr, mininterval=_interval(), leave=False) as bar:
        while waiting or running:
            while waiting and idle:
                actor, (unit, attempt) = idle.pop(), waiting.popleft()
                running[actor.work.remote(unit)] = (actor, unit, attempt)
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            actor, unit, attempt = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.ActorDiedError as error:
                if attempt >= resources.attempts:
                    raise VidflowError(f"{name}: {attempt} workers died on {unit!r}: {error}") from error
                log.warning("%s: a worker died on one unit; attempt %d follows", name, attempt + 1)
                waiting.append((unit, attempt + 1))
                idle.append(make())
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, VidflowError) else error from None
            idle.append(actor)
            bar.update()
            yield result


def commit_units(
    config: Config,
    directory: Path,
    build: Callable[[], Callable[[Filed], FileEntry]],
    units: Sequence[Filed],
    resources: StageResources,
    *,
    name: str,
) -> tuple[list[FileEntry], list[FileEntry]]:
    """Make the files of `units` that are not committed yet.

    Args:
        config: The experiment, for the Ray session.
        directory: Folder of the stage.
        build: Makes the worker; it commits one file per unit.
        units: Units whose `file` names what the worker commits.
        resources: What a worker takes.
        name: Shown beside the progress.

    Returns:
        The entries of all units in their order, and those made now.
    """
    remove_leftovers(directory)
    done = {unit.file: entry for unit in units if (entry := committed_entry(directory, unit.file))}
    waiting = [unit for unit in units if unit.file not in done]
    if done:
        log.info("%s: %d of %d files are there already", name, len(done), len(units))
    made = []
    if waiting:
        with ray_session(config):
            made = list(map_units(build, waiting, resources, name=name))
    done.update((entry.file, entry) for entry in made)
    return [done[unit.file] for unit in units], made


@ray.remote
class _Actor:
    """Holds one worker in a process of its own."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = build()

    def work(self, unit: Any) -> Any:  # noqa: ANN401 - whatever the worker takes and gives
        return self._work(unit)


def _start_actor(build: Callable[[], Callable[[Any], Any]], resources: StageResources) -> Any:  # noqa: ANN401
    return _Actor.options(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus).remote(build)


def _num_actors(resources: StageResources, num_units: int) -> int:
    cluster = ray.cluster_resources()
    fitting = int(cluster.get("CPU", 1) / resources.num_cpus)
    if resources.num_gpus:
        fitting = min(fitting, int(cluster.get("GPU", 0) / resources.num_gpus))
    if fitting < 1:
        raise VidflowError(
            f"no worker fits the cluster: each takes {resources.num_cpus} CPU and {resources.num_gpus} GPU, the cluster "
            f"has {cluster.get('CPU', 0):g} CPU and {cluster.get('GPU', 0):g} GPU; set `resources.*.num_cpus` or `num_gpus`"
        )
    return max(1, min(num_units, resources.workers or fitting, fitting))


def _interval() -> float:
    """Seconds between updates: often for a person at a terminal, seldom in a log file."""
    return 0.2 if sys.stderr.isatty() else 10.0
