"""What stages share: a Ray session, a pool that replaces workers that die, progress, and the closing line."""

import contextlib
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
import ray.exceptions
from ray._private import ray_constants
from ray._private import worker as ray_worker

from pipelines.display import Bar, Waiting, shown
from pipelines.interrupts import watch_signals
from pipelines.placement import (
    PARTS,
    Machine,
    Part,
    Placement,
    check_fit,
    count_fitting,
    place_workers,
)
from pipelines.unit_counts import Reporter, Watch, new_slot, session_counts
from vidflow.allocator import keep_freed_memory
from vidflow.config.load import join_problems
from vidflow.config.schema import Config
from vidflow.config.tracking_uri import check_uri, store_uri
from vidflow.counts import Count
from vidflow.errors import ConfigError, VidflowError
from vidflow.store.layout import FileEntry, committed_entry, remove_leftovers


class FileUnit(Protocol):
    """A unit of work that becomes one file."""

    @property
    def file(self) -> str:
        """Name of the file within the stage's folder."""


Unit = TypeVar("Unit")
Filed = TypeVar("Filed", bound=FileUnit)
Result = TypeVar("Result")
_SECONDS_BETWEEN_LOOKS = 0.5
log = logging.getLogger("vidflow")
# Ray's name of a resource that says of which kind a machine's GPUs are.
_KIND = "accelerator_type:"


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Join the cluster that the config or `RAY_ADDRESS` names, or start a local one; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    # "local", because a cluster that runs on this machine is joined only if the user names it.
    address = config.resources.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    # A worker without a GPU in its resources must see no GPU. This will be Ray's default; setting it avoids a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":
        _stay_private()
    ray_worker.print_worker_logs = _log_lines  # else Ray prints to stdout, in colours, and through a moving view
    started = time.monotonic()
    dashboard = False if address == "local" else None  # with an existing cluster, Ray refuses the argument
    with shown(Waiting("ray: starting on this machine" if address == "local" else f"ray: joining {address}")):
        ray.init(address=address, logging_level=logging.ERROR, include_dashboard=dashboard)
    session_counts.cache_clear()  # that of an earlier session
    watch_signals()  # again, because Ray has set its own handler for SIGTERM
    log.info("ray: %s, ready in %.1f s", address, time.monotonic() - started)
    try:
        yield
    finally:
        ray.shutdown()


def _log_lines(data: dict[str, Any], print_file: Any, ignore_prefix: bool = False) -> None:  # noqa: ARG001 - as Ray calls it
    """Log what workers print, and the first sentence of what Ray itself has to say."""
    match data["pid"]:
        case "raylet":
            lines = [f"ray: {line.partition('. ')[0]}" for line in data["lines"]]
        case "autoscaler":  # its log, of which Ray knows the few lines for users
            lines = [f"ray: {line}" for line in ray_worker.filter_autoscaler_events(data["lines"])]
        case pid:
            lines = [f"worker {pid}: {line}" for line in data["lines"]]
    for line in lines:
        log.warning("%s", line)


def _stay_private() -> None:
    """Bind a local cluster to 127.0.0.1, and hide its access token from other users of the machine."""
    # Ray binds to all interfaces unless its node is at 127.0.0.1. It replaces that address with the machine's own, even
    # if `_node_ip_address` names it. It does not with this switch, which Ray itself sets on systems other than Linux.
    ray_constants.ENABLE_RAY_CLUSTER = False
    # As in Ray, an empty variable counts as not set.
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return  # the user's own setting, which needs no file
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _check_token(Path(named))
        return
    try:
        _make_token(Path.home() / ".ray" / "auth_token")
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is not known
        raise VidflowError(
            f"the home folder cannot hold Ray's token ({error}); set HOME to a folder that can be written, "
            "RAY_AUTH_TOKEN_PATH to a file that holds a token, or RAY_AUTH_MODE=disabled"
        ) from error


def _check_token(path: Path) -> None:
    """Check that the user's file holds a token, because Ray shows a traceback if it does not.

    Raises:
        VidflowError: If the file is empty or cannot be read.
    """
    try:
        problem = "" if path.read_bytes().strip() else "it is empty"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise VidflowError(
            f"RAY_AUTH_TOKEN_PATH: got {path} ({problem}); wanted a file that holds Ray's token, or no such variable"
        )


def _make_token(path: Path) -> None:
    """Make a file with a token unless it exists, and let only its owner read it.

    Raises:
        OSError: If the file cannot be made.
    """
    if not path.exists():
        # Ray would let everybody read it. It is complete before it gets its name, as another command may start now.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(aside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(aside)
        aside.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def list_machines() -> list[Machine]:
    """Return the machines of the cluster."""
    machines = []
    for node in ray.nodes():
        if node["Alive"]:
            has: dict[str, float] = node["Resources"]
            kinds = [name.removeprefix(_KIND) for name in has if name.startswith(_KIND)]
            machines.append(Machine(has.get("CPU", 0), has.get("GPU", 0), kinds[0] if kinds else ""))
    return machines


def place(config: Config, part: Part) -> Placement:
    """Return what each worker of a part of the experiment takes on this cluster.

    Raises:
        ConfigError: If no worker fits.
    """
    machines = list_machines()
    placement = place_workers(config.resources, part, machines)
    check_fit(placement, machines, config.resources)
    return placement


def count_workers(placement: Placement) -> int:
    """Return how many workers run at the same time on this cluster, if there is work for all."""
    fitting = count_fitting(placement, list_machines())
    return min(placement.workers or fitting, fitting)


def check_cluster(config: Config, stages: Sequence[str]) -> None:
    """Check that workers of all stages fit the cluster, and that the tracking store is safe on its number of hosts.

    Raises:
        ConfigError: With every problem.
    """
    problems, machines = [], list_machines()
    for part in dict.fromkeys(part for stage in stages for part in PARTS.get(stage, ())):
        try:
            place(config, part)
        except ConfigError as error:
            problems.append(str(error))
    if "sweep" in stages:
        try:
            check_uri(store_uri(config), num_hosts=len(machines))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(join_problems(problems))


Worker = Callable[[Any, Count], Any]
"""Takes a unit, and what to call as its clips are done."""


class WorkerPool:
    """Ray actors with one worker each; if an actor dies, a new one gets its unit."""

    def __init__(self, build: Callable[[], Worker], placement: Placement, *, num_units: int, name: str) -> None:
        """Start as many actors as `placement` and the cluster allow, at most one per unit.

        Args:
            build: Makes the worker, once per actor; sent to the actor by reference.
            placement: Resources of an actor, and the number of actors.
            num_units: Expected number of units.
            name: Name shown beside the progress.
        """
        session_counts()  # first, so that it is there before the workers have something to count
        self._build, self._placement, self._name = build, placement, name
        number = min(num_units, count_workers(placement))
        log.info("%s: %d worker%s, each %s", name, number, "s" * (number > 1), placement.words)
        self._idle = [self._start() for _ in range(number)]

    @property
    def num_actors(self) -> int:
        """Number of actors."""
        return len(self._idle)

    def map(self, units: Sequence[Any], *, sizes: Sequence[int] | None = None, counted: str = "units") -> Iterator[Any]:
        """Yield the results of all units, in the order in which they are done.

        Each actor works on one unit at a time, so results do not pile up in the object store.

        Args:
            units: Units of work.
            sizes: How many of what is counted each unit has; None counts units.
            counted: What the progress counts, in the plural.

        Raises:
            VidflowError: If a unit has killed `placement.attempts` workers.
        """
        sizes = [1] * len(units) if sizes is None else sizes
        waiting = deque((unit, size, 1) for unit, size in zip(units, sizes, strict=True))
        running: dict[Any, _Running] = {}
        bar, watch = Bar(self._name, sum(sizes), unit=counted, num_workers=self.num_actors), Watch()
        totals = (0, 0)
        with shown(bar):
            while waiting or running:
                while waiting and self._idle:
                    work = _Running(self._idle.pop(), *waiting.popleft())
                    running[work.actor.work.remote(work.unit, session_counts(), work.slot)] = work
                ended, _ = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
                if not ended:
                    self._show(bar, totals, watch, running)
                    continue
                work = running.pop(ended[0])
                try:
                    result, rejects = ray.get(ended[0])
                except ray.exceptions.ActorDiedError as error:
                    waiting.append((work.unit, work.size, self._next_attempt(work, error)))
                    bar.num_retries += 1
                    self._idle.append(self._start())
                    continue
                except ray.exceptions.RayTaskError as error:
                    # Callers can explain these causes. All other errors keep the worker's traceback.
                    raise error.cause if isinstance(error.cause, VidflowError | OSError) else error from error
                self._idle.append(work.actor)
                totals = (totals[0] + work.size, totals[1] + rejects)
                self._show(bar, totals, watch, running)
                yield result

    @staticmethod
    def _show(bar: Bar, totals: tuple[int, int], watch: Watch, running: Mapping[Any, "_Running"]) -> None:
        """Show what is done of the units that are over and of those in progress."""
        done, rejects = watch.look([work.slot for work in running.values()])
        bar.update(totals[0] + done, totals[1] + rejects)

    def close(self) -> None:
        """Release the actors and their resources."""
        for actor in self._idle:
            ray.kill(actor)

    def _start(self) -> Any:
        return (
            ray.remote(_Actor)
            .options(num_cpus=self._placement.num_cpus, num_gpus=self._placement.num_gpus)
            .remote(self._build)
        )

    def _next_attempt(self, work: "_Running", error: Exception) -> int:
        if work.attempt >= self._placement.attempts:
            raise VidflowError(f"{self._name}: {work.attempt} workers died on {work.unit!r}: {error}") from error
        log.warning("%s: a worker died on one unit; attempt %d follows", self._name, work.attempt + 1)
        return work.attempt + 1


@dataclass
class _Running:
    """One attempt at one unit."""

    actor: Any
    unit: Any
    size: int
    attempt: int
    slot: int = field(default_factory=new_slot)


def map_units(
    build: Callable[[], Callable[[Unit, Count], Result]],
    units: Sequence[Unit],
    placement: Placement,
    *,
    name: str,
    sizes: Sequence[int] | None = None,
    counted: str = "units",
) -> Iterator[Result]:
    """Apply a worker to every unit on a new pool and yield the results in the order in which they are done.

    See `WorkerPool`; an explanation of all arguments is there.
    """
    pool = WorkerPool(build, placement, num_units=len(units), name=name)
    try:
        yield from pool.map(units, sizes=sizes, counted=counted)
    finally:
        pool.close()


def commit_units(
    directory: Path,
    build: Callable[[], Callable[[Filed, Count], FileEntry]],
    units: Sequence[Filed],
    placement: Placement,
    *,
    name: str,
    num_clips: Callable[[Filed], int],
    is_current: Callable[[Filed, FileEntry], bool] | None = None,
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

    Returns:
        The entries of all units in their order, and the entries of the files made by this call.
    """
    remove_leftovers(directory)
    done = {}
    for unit in units:
        entry = committed_entry(directory, unit.file)
        if entry is not None and (is_current is None or is_current(unit, entry)):
            done[unit.file] = entry.without_members()
    waiting = [unit for unit in units if unit.file not in done]
    if done:
        log.info("%s: %d of %d files are there already", name, len(done), len(units))
    made = []
    if waiting:
        sizes = [num_clips(unit) for unit in waiting]
        made = list(map_units(build, waiting, placement, name=name, sizes=sizes, counted="clips"))
    done.update((entry.file, entry) for entry in made)
    return [done[unit.file] for unit in units], made


class _Actor:
    """Runs one worker in a separate process."""

    def __init__(self, build: Callable[[], Worker]) -> None:
        keep_freed_memory()
        self._build = build
        self._work: Worker | None = None

    def work(self, unit: Any, counts: Any, slot: int) -> tuple[Any, int]:
        """Return the result, and the number of rejects."""
        # Not in the constructor: an error there would reach the driver as a dead actor, without the error's message.
        if self._work is None:
            self._work = self._build()
        reporter = Reporter(counts, slot)
        return self._work(unit, reporter), reporter.num_rejects
