"""How a worker says what it has done of a unit while it is still at it."""

from typing import Protocol


class Count(Protocol):
    """Called after some clips; it returns at once."""

    def __call__(self, num_done: int, *, num_rejects: int = 0) -> None:
        """Add to what is done.

        Args:
            num_done: Clips, files or videos done since the last call, with the rejects among them.
            num_rejects: Those that were left out.
        """


def uncounted(num_done: int, *, num_rejects: int = 0) -> None:
    """Count nothing, where nobody looks."""
