"""Clips that kill the process that works on them: how a part of a unit is tried, and how such a clip is refused."""

from vidflow.records import Reject, RejectStage

MESSAGE = "the worker process died on it every time; look at its size and the worker's memory, or leave it out"


def is_wanted(position: int, only: tuple[int, int] | None) -> bool:
    """Whether a clip belongs to the part of a unit that is tried; None is the whole unit."""
    return only is None or only[0] <= position < only[1]


def file_to_write(file: str, only: tuple[int, int] | None) -> str:
    """Return the name of a unit's file; that of a part counts as a leftover if its worker dies."""
    return file if only is None else f".{file}.{only[0]}-{only[1]}.tmp"


def refuse_killer(key: str, path: str, *, stage: RejectStage) -> Reject:
    """Return the reject of a clip that kills its worker."""
    return Reject(key=key, path=path, stage=stage, reason="WorkerDied", message=f"{path}: {MESSAGE}")


__all__ = ["MESSAGE", "file_to_write", "is_wanted", "refuse_killer"]
