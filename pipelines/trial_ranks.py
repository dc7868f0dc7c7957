"""Several processes that train one trial, on what Ray Tune has reserved for all of them together.

Ray Train's `TorchTrainer` within Tune does not serve: it reserves by itself, so Tune starts trials that only wait; when
Tune stops a trial, the reservation is left to an actor that asks Ray's dashboard, which a local Ray does not have; and
it starts six more actors for each trial. A placement group of Tune ends with its trial.
"""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import ray
import torch.distributed as dist
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipelines.placement import Placement
from vidflow.errors import VidflowError

# When a process ends, the others fail before Ray knows that its actor has died.
_SECONDS_TO_EXPLAIN = 10.0


class Meeting(NamedTuple):
    """Where the processes of a trial find each other.

    Attributes:
        host: Address of the first one's node.
        port: Port there.
        size: Number of processes.
    """

    host: str
    port: int
    size: int


class _Process:
    """One process of a trial."""

    def meet(self, size: int) -> Meeting:
        """Open the port at which the others join; it listens on Ray's address of this node only."""
        host = ray.util.get_node_ip_address()
        listening = socket.create_server((host, 0))
        port = listening.getsockname()[1]
        self._store = dist.TCPStore(
            host, port, size, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )
        return Meeting(host, port, size)

    def join(
        self, rank: int, meeting: Meeting, backend: str, train: Callable[..., Iterator[Any]], *arguments: Any
    ) -> None:
        """Join the others, and get ready for `step`."""
        _choose_interface()
        if rank:
            self._store = dist.TCPStore(meeting.host, meeting.port, meeting.size, is_master=False)
        dist.init_process_group(backend, store=self._store, rank=rank, world_size=meeting.size)
        self._values = train(*arguments)

    def step(self) -> Any:
        """Return the next value of the function; None at its end."""
        return next(self._values, None)


def train_together(placement: Placement, train: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """Run a function in all processes of a trial, joined by torch's process group, and yield what the first one yields.

    Call it in a trial whose placement group has a bundle for each process. No process goes on before the caller does.

    Args:
        placement: What each process takes.
        train: The function; it yields equally often in all processes.
        arguments: What it gets.

    Raises:
        VidflowError: If a process has raised it.
        ChildProcessError: If a process has died.
    """
    group = ray.util.get_current_placement_group()
    assert group is not None  # of Tune
    processes: list[Any] = [
        ray.remote(_Process)
        .options(
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote()
        for rank in range(placement.processes)
    ]
    # One group for both: what is shared and gathered lies on the host.
    backend = "cpu:gloo,cuda:nccl" if placement.device == "cuda" else "gloo"
    try:
        meeting = processes[0].meet.remote(len(processes))
        _get_all([each.join.remote(rank, meeting, backend, train, *arguments) for rank, each in enumerate(processes)])
        while (value := _get_all([each.step.remote() for each in processes])[0]) is not None:
            yield value
    finally:
        for each in processes:
            ray.kill(each)


def _get_all(answers: list[Any]) -> list[Any]:
    """Return what all processes answer; as soon as one fails, the error that has caused it, as the others then wait."""
    waiting = answers
    while waiting:
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(ready)
        except RayError as error:
            raise _explain(answers, error) from error
    values: list[Any] = ray.get(answers)
    return values


def _explain(answers: list[Any], first: RayError) -> Exception:
    """Return the error that has caused the others: when one process ends, the others fail as they wait for it."""
    seconds = _SECONDS_TO_EXPLAIN if _order(first) else 0
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=seconds)
    failures = [
        (rank, error) for rank, answer in enumerate(answers) if answer in ready and (error := _error_of(answer))
    ]
    rank, error = min(failures, key=lambda each: _order(each[1]))
    if isinstance(error, RayActorError):
        return ChildProcessError(f"process {rank + 1} of {len(answers)} died (killed, or out of memory)")
    if isinstance(error, RayTaskError) and isinstance(error.cause, VidflowError):
        return error.cause
    return error


def _error_of(answer: Any) -> RayError | None:
    try:
        ray.get(answer)
    except RayError as error:
        return error
    return None


def _order(error: RayError) -> int:
    """Return the place of an error: ours, a death, any other, and last those of waiting for a process that is gone."""
    if isinstance(error, RayActorError):
        return 1
    cause = error.cause if isinstance(error, RayTaskError) else error
    return 0 if isinstance(cause, VidflowError) else 3 if isinstance(cause, RuntimeError) else 2


def _choose_interface() -> None:
    """Let torch's processes talk over the interface of Ray's address, which a local Ray keeps to this machine."""
    host = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == host for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


__all__ = ["train_together"]
