"""Rejects that must not outlive their cause: an input may succeed with more time, memory or permissions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vidflow.errors import RejectReason, VideoError
from vidflow.files import FileState, file_state
from vidflow.store.layout import FileEntry

Result = TypeVar("Result")
KILLED: tuple[RejectReason, ...] = ("Timeout", "OutOfMemory", "DecoderCrashed")
"""Reasons to try again at once: the machine may be the cause, not the input."""
TRANSIENT: tuple[RejectReason, ...] = (*KILLED, "WorkerDied", "Unreadable", "Changed")
"""Reasons that may go away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the work on one input.

    Attributes:
        timeout_seconds: Wall time.
        memory_mib: Memory of the decoder in MiB.
    """

    timeout_seconds: float
    memory_mib: int

    def exceed(self, others: "Limits") -> bool:
        """Whether these limits allow more time or memory than the others; then an input that failed may succeed."""
        return self.timeout_seconds > others.timeout_seconds or self.memory_mib > others.memory_mib


def try_twice(call: Callable[[], Result]) -> Result:
    """Return what a call returns; if it fails for a reason in `KILLED`, call it once more.

    Raises:
        VideoError: The error of the last attempt.
    """
    try:
        return call()
    except VideoError as error:
        if error.reason not in KILLED:
            raise
    try:
        return call()
    except VideoError as error:
        error.attempts = 2
        raise


def describe_attempt(limits: Limits, states: Mapping[str, FileState]) -> dict[str, Any]:
    """Return the details that an entry keeps for `is_due`; empty if nothing was left out for a transient reason.

    Args:
        limits: Limits of each clip.
        states: States of the files of the clips that were left out.
    """
    if not states:
        return {}
    files = {path: list(state) for path, state in sorted(states.items())}
    return {"attempt": {"timeout_seconds": limits.timeout_seconds, "memory_mib": limits.memory_mib, "files": files}}


def is_due(entry: FileEntry, limits: Limits) -> bool:
    """Whether an entry left out a clip that may succeed now: the limits are higher, or its file has changed."""
    attempt: Mapping[str, Any] | None = entry.details.get("attempt")
    if attempt is None:
        return False
    before = Limits(timeout_seconds=attempt["timeout_seconds"], memory_mib=attempt["memory_mib"])
    return limits.exceed(before) or any(list(file_state(path)) != state for path, state in attempt["files"].items())
