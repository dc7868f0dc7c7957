"""A pool of workers whose size follows the work that is left and the machines that come and go.

Its actors are asked for one by one: those that find no place are demand that an autoscaler sees, and a node that joins
holds them. A unit is handed out only to an actor that has answered, so none waits for an actor that never comes. When
no unit is left to hand out, idle and unplaced actors go, and other commands on the cluster get their CPUs.

Not Ray Data, which moves rows between operators and counts failures in blocks: our units are files that workers commit
one by one, and the unit that kills its worker must be known. Not `ray.util.ActorPool`, which has a fixed number of
actors and loses the unit of one that dies. Not placement groups, which reserve resources before work starts: so two
commands would block each other.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
import ray.exceptions

from pipelines.display import Bar, shown
from pipelines.losses import LOST, explain_loss, shorten
from pipelines.placement import Placement
from pipelines.pool_metrics import PoolMetrics
from pipelines.ray_session import count_workers
from pipelines.room import RoomWatch
from pipelines.shared_root import Home, Proof, answer, check_home, session_proof
from pipelines.unit_counts import Reporter, Watch, new_slot, session_counts
from vidflow.allocator import keep_freed_memory
from vidflow.counts import Count
from vidflow.errors import VidflowError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
_SECONDS_BETWEEN_LOOKS = 0.5
# How many actors may wait for a place at a time while there are few; with many, as many again as there are.
_FEW = 4
# Actors in a row that die before they answer.
_MOST_FAILED_STARTS = 5
log = logging.getLogger("vidflow")

Worker = Callable[[Any, Count], Any]
"""Takes a unit, and what to call as its clips are done."""


@dataclass(eq=False)
class _Work:
    """A unit of work and its fate so far.

    Attributes:
        unit: The unit.
        size: How many of what is counted it has.
        num_kills: How many workers have died of it, as far as known; one that is lost with its node did not.
        reason: What Ray said of the last of them.
    """

    unit: Any
    size: int
    num_kills: int = 0
    reason: str = ""


@dataclass
class _Running:
    """One attempt at one unit."""

    actor: "_Placed"
    work: _Work
    slot: int = field(default_factory=new_slot)


@dataclass(frozen=True)
class _Placed:
    """An actor that has answered, and where it is."""

    handle: Any
    home: Home


class WorkerPool:
    """Ray actors with one worker each. If an actor is lost, its unit is given to another."""

    def __init__(
        self, build: Callable[[], Worker], placement: Placement, *, name: str, keeps_idle: bool = False
    ) -> None:
        """Start no actor yet.

        Args:
            build: Makes the worker, once per actor; sent to the actor by reference.
            placement: Resources of an actor, and the largest number of actors.
            name: Name shown beside the progress.
            keeps_idle: Keep actors from one `map` to the next, instead of releasing those that have nothing to do.
        """
        session_counts()  # first, so that it is there before the workers have something to count
        self._build, self._placement, self._name, self._keeps_idle = build, placement, name, keeps_idle
        self._waiting: deque[_Work] = deque()
        self._killers: list[Any] | None = None
        self._idle: list[_Placed] = []
        self._starting: dict[Any, Any] = {}  # an actor's first answer -> the actor
        self._running: dict[Any, _Running] = {}
        self._doubts: dict[Any, tuple[Any, _Work]] = {}  # the next answer of an actor that was silent -> it, its unit
        self._num_failed_starts = 0
        self._room = RoomWatch(name, placement)

    @property
    def num_workers(self) -> int:
        """Number of workers that have answered and are not lost."""
        return len(self._idle) + len(self._running)

    def map(
        self,
        units: Sequence[Any],
        *,
        sizes: Sequence[int] | None = None,
        counted: str = "units",
        killers: list[Any] | None = None,
    ) -> Iterator[Any]:
        """Yield the results of all units, in the order in which they are done.

        Each actor works on one unit at a time, so results do not pile up in the object store.

        Args:
            units: Units of work.
            sizes: How many of what is counted each unit has; None counts units.
            counted: What the progress counts, in the plural.
            killers: Gets the units that have killed `placement.attempts` workers, which then have no result.

        Raises:
            VidflowError: If there is such a unit and `killers` is None, or no machine can hold a worker for too long.
        """
        sizes = [1] * len(units) if sizes is None else sizes
        self._waiting = deque(_Work(unit, size) for unit, size in zip(units, sizes, strict=True))
        self._killers = killers
        fitting = min(len(units), count_workers(self._placement))
        log.info("%s: %d worker%s, each %s", self._name, fitting, "s" * (fitting != 1), self._placement.words)
        bar, watch, totals = Bar(self._name, sum(sizes), unit=counted, num_workers=fitting), Watch(), (0, 0)
        metrics = PoolMetrics(self._name)
        with shown(bar):
            while self._waiting or self._running:
                self._resize(len(self._waiting))
                self._hand_out()
                for work, result, rejects in self._collect(bar):
                    totals = (totals[0] + work.size, totals[1] + rejects)
                    yield result
                num_done, num_rejects = self._look(totals, watch)
                bar.update(num_done, num_rejects)
                metrics.note(num_done, num_rejects, num_waiting=len(self._waiting), num_workers=self.num_workers)
        self._resize(0)

    def close(self) -> None:
        """Release the actors and their resources."""
        placed = [*self._idle, *(running.actor for running in self._running.values())]
        doubted = [handle for handle, _ in self._doubts.values()]
        for handle in [*self._starting.values(), *doubted, *(actor.handle for actor in placed)]:
            ray.kill(handle)
        self._idle, self._starting, self._running, self._doubts = [], {}, {}, {}

    def _resize(self, num_waiting: int) -> None:
        """Ask for actors, or release some: at most one per unit that waits, and a few at a time."""
        limit = num_waiting if self._placement.workers is None else self._placement.workers - len(self._running)
        wanted = min(num_waiting, limit)
        while self._starting and len(self._starting) + len(self._idle) > wanted:
            ray.kill(self._starting.popitem()[1])
        while not self._keeps_idle and len(self._idle) > wanted:
            ray.kill(self._idle.pop().handle)
        most = max(_FEW, len(self._idle) + len(self._running))
        while len(self._starting) + len(self._idle) < wanted and len(self._starting) < most:
            actor = self._start()
            self._starting[actor.answer.remote(session_proof())] = actor

    def _start(self) -> Any:
        return (
            ray.remote(_Actor)
            .options(num_cpus=self._placement.num_cpus, num_gpus=self._placement.num_gpus)
            .remote(self._build)
        )

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            work = self._waiting.popleft()
            if work.num_kills >= self._placement.attempts:  # of the last one it was known only now
                self._give_back(work)
                continue
            running = _Running(self._idle.pop(), work)
            self._running[running.actor.handle.work.remote(work.unit, session_counts(), running.slot)] = running

    def _collect(self, bar: Bar) -> Iterator[tuple[_Work, Any, int]]:
        """Wait for the next answer, and yield a unit's result and number of rejects if it is one."""
        asked = [*self._running, *self._starting, *self._doubts]
        ended = ray.wait(asked, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)[0] if asked else []
        if self._idle or self._running:
            self._room.note_worker()
        elif not ended:
            self._room.look()
        for ref in ended:
            if ref in self._starting:
                self._welcome(ref)
            elif ref in self._doubts:
                self._clear_doubt(ref)
            elif (got := self._take(ref, bar)) is not None:
                yield got

    def _welcome(self, ref: Any) -> None:
        """Take in an actor that has answered for the first time."""
        handle = self._starting.pop(ref)
        try:
            home: Home = ray.get(ref)
        except LOST as error:
            self._num_failed_starts += explain_loss(handle, error).is_own
            if self._num_failed_starts >= _MOST_FAILED_STARTS:
                raise VidflowError(
                    f"{self._name}: {self._num_failed_starts} workers in a row died before they did anything: "
                    f"{shorten(str(error))}"
                ) from error
            return
        self._num_failed_starts = 0
        check_home(home)
        self._idle.append(_Placed(handle, home))

    def _take(self, ref: Any, bar: Bar) -> tuple[_Work, Any, int] | None:
        """Return what a unit gave; None if its worker is lost and the unit waits again."""
        running = self._running.pop(ref)
        try:
            result, rejects = ray.get(ref)
        except LOST as error:
            self._lose(running, error)
            self._give_back(running.work)
            bar.num_retries += 1
            return None
        except ray.exceptions.RayTaskError as error:
            self._idle.append(running.actor)
            # Callers can explain these causes. All other errors keep the worker's traceback.
            raise error.cause if isinstance(error.cause, VidflowError | OSError) else error from error
        self._idle.append(running.actor)
        return running.work, result, rejects

    def _lose(self, running: _Running, error: Exception) -> None:
        """Find out why a worker is lost, now or later."""
        loss, work, ip = explain_loss(running.actor.handle, error), running.work, running.actor.home.ip
        if loss.is_silent:
            # Ray finds out later whether the worker or its node has died, or only the connection was lost.
            self._doubts[running.actor.handle.answer.remote(None)] = running.actor.handle, work
            log.warning("%s: a worker on %s does not answer; another gets its unit", self._name, ip)
        elif loss.is_own:
            self._blame(work, error)
        else:
            log.warning("%s: a worker was lost with its node %s; another gets its unit", self._name, ip)

    def _clear_doubt(self, ref: Any) -> None:
        handle, work = self._doubts.pop(ref)
        try:
            ray.get(ref)
        except LOST as error:
            loss = explain_loss(handle, error)
            if loss.is_silent:
                self._doubts[handle.answer.remote(None)] = handle, work
                return
            if loss.is_own:
                self._blame(work, error)
        ray.kill(handle)  # if it is there after all, its unit is with another one now

    def _blame(self, work: _Work, error: Exception) -> None:
        work.num_kills += 1
        work.reason = shorten(str(error))
        if work.num_kills < self._placement.attempts:
            log.warning("%s: a worker died on one unit; attempt %d follows", self._name, work.num_kills + 1)

    def _give_back(self, work: _Work) -> None:
        """Let a unit wait again, unless it has killed too many workers."""
        if work.num_kills < self._placement.attempts:
            self._waiting.append(work)
        elif self._killers is not None:
            self._killers.append(work.unit)
        else:
            raise VidflowError(
                f"{self._name}: {work.num_kills} workers died on {shorten(repr(work.unit))}: {work.reason}"
            )

    def _look(self, totals: tuple[int, int], watch: Watch) -> tuple[int, int]:
        """Return what is done and rejected of the units that are over and of those in progress."""
        done, rejects = watch.look([running.slot for running in self._running.values()])
        return totals[0] + done, totals[1] + rejects


def map_units(
    build: Callable[[], Callable[[Unit, Count], Result]],
    units: Sequence[Unit],
    placement: Placement,
    *,
    name: str,
    sizes: Sequence[int] | None = None,
    counted: str = "units",
    killers: list[Unit] | None = None,
) -> Iterator[Result]:
    """Apply a worker to every unit on a new pool and yield the results in the order in which they are done.

    See `WorkerPool`; an explanation of all arguments is there.
    """
    pool = WorkerPool(build, placement, name=name)
    try:
        yield from pool.map(units, sizes=sizes, counted=counted, killers=killers)
    finally:
        pool.close()


class _Actor:
    """Runs one worker in a separate process."""

    def __init__(self, build: Callable[[], Worker]) -> None:
        keep_freed_memory()
        self._build = build
        self._work: Worker | None = None

    def answer(self, proof: Proof | None) -> Home:
        """Return where this is, and show that it sees the root."""
        return answer(proof)

    def work(self, unit: Any, counts: Any, slot: int) -> tuple[Any, int]:
        """Return the result, and the number of rejects."""
        # Not in the constructor: an error there would reach the driver as a dead actor, without the error's message.
        if self._work is None:
            self._work = self._build()
        reporter = Reporter(counts, slot)
        return self._work(unit, reporter), reporter.num_rejects


__all__ = ["Worker", "WorkerPool", "log", "map_units"]
