"""Rejects that must not outlive their cause: an input may do well with more time, memory or permissions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vidflow.errors import RejectReason, VideoError
from vidflow.files import FileState, file_state
from vidflow.store.layout import FileEntry

Result = TypeVar("Result")
KILLED: tuple[RejectReason, ...] = ("Timeout", "OutOfMemory", "DecoderCrashed")
"""Reasons for one more attempt at once: the machine may have been at fault, not the input."""
TRANSIENT: tuple[RejectReason, ...] = (*KILLED, "Unreadable", "Changed")
"""Reasons that say nothing final about an input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one input may take.

    Attributes:
        timeout_seconds: Wall time.
        memory_mib: Memory of the decoder in MiB.
    """

    timeout_seconds: float
    memory_mib: int

    def exceed(self, others: "Limits") -> bool:
        """Whether these allow more of something, so that what failed under the others may succeed."""
        return self.timeout_seconds > others.timeout_seconds or self.memory_mib > others.memory_mib


def try_twice(call: Callable[[], Result]) -> Result:
    """Return what a call returns; one that ends for a reason of `KILLED` is made once more.

    Raises:
        VideoError: That of the last attempt.
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
    """Return the details that an entry keeps for `is_due`; none where nothing was left out for a transient reason.

    Args:
        limits: What each clip was allowed.
        states: How the files of those left out were.
    """
    if not states:
        return {}
    files = {path: list(state) for path, state in sorted(states.items())}
    return {"attempt": {"timeout_seconds": limits.timeout_seconds, "memory_mib": limits.memory_mib, "files": files}}


def is_due(entry: FileEntry, limits: Limits) -> bool:
    """Whether an entry left out something that may succeed now: under higher limits, or as its file changed."""
    attempt: Mapping[str, Any] | None = entry.details.get("attempt")
    if attempt is None:
        return False
    before = Limits(timeout_seconds=attempt["timeout_seconds"], memory_mib=attempt["memory_mib"])
    return limits.exceed(before) or any(list(file_state(path)) != state for path, state in attempt["files"].items())
