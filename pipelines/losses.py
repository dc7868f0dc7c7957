"""Why an actor is lost: its own process died, its node did, or nobody knows yet.

Only the first is a unit's fault. Ray's exceptions say it in prose alone, so Ray's table of actors is asked.
"""

from typing import Any, NamedTuple

import ray.exceptions
from ray._private import state

from vidflow.errors import VidflowError

LOST = (
    ray.exceptions.RayActorError,  # died, or does not answer
    ray.exceptions.OutOfMemoryError,  # killed by Ray because its node was short of memory
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ObjectLostError,  # the unit was done, and its result was on a node that is lost
)
_MOST_CHARACTERS = 400


class Loss(NamedTuple):
    """Why an actor is lost.

    Attributes:
        is_own: Its own process died.
        is_silent: It does not answer, and Ray does not know why.
    """

    is_own: bool
    is_silent: bool = False


def explain_loss(handle: Any, error: Exception) -> Loss:
    """Return why an actor is lost, as far as Ray knows.

    Raises:
        VidflowError: If its environment or its resources are refused, which other actors would meet as well.
    """
    if isinstance(error, ray.exceptions.OutOfMemoryError | ray.exceptions.WorkerCrashedError):
        return Loss(is_own=True)
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return Loss(is_own=False, is_silent=True)
    if not isinstance(error, ray.exceptions.ActorDiedError):
        return Loss(is_own=False)
    cause: Any = state.state.actor_table(handle._actor_id.hex()).get("DeathCause")
    match cause.WhichOneof("context") if cause is not None else None:
        case "actor_died_error_context":
            context = cause.actor_died_error_context
            return Loss(is_own=context.reason == context.WORKER_DIED)
        case "oom_context":
            return Loss(is_own=True)
        case "runtime_env_failed_context" | "actor_unschedulable_context" | "creation_task_failure_context":
            raise VidflowError(f"no worker can start: {shorten(str(error))}") from error
        case _:
            return Loss(is_own=False)


def shorten(text: str) -> str:
    """Return text on one line, of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."


__all__ = ["LOST", "Loss", "explain_loss", "shorten"]
