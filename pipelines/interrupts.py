"""Ctrl-C and SIGTERM end a command: nothing more is committed."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

RESUMES = "the same command goes on from here"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_watched: dict[signal.Signals, str] = {}
_received: list[int] = []


def interrupted_message(*, resumes: bool) -> str:
    """Return what an interrupted command says; one that does not resume starts at its beginning when repeated."""
    return f"vidflow: interrupted; {RESUMES}" if resumes else "vidflow: interrupted"


@contextlib.contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Turn both signals into `KeyboardInterrupt` for the time of the block; a second one ends the process at once.

    Args:
        message: What is said when the process ends at once.
    """
    # What the caller ignores stays ignored, as below `nohup`.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _watched.update({number: message for number in _SIGNALS if before[number] != signal.SIG_IGN})
    watch_signals()
    try:
        yield
        raise_if_interrupted()
    finally:
        for number in _watched:
            # A handler that was set outside Python cannot be named, and so not be put back.
            signal.signal(number, before[number] or signal.SIG_DFL)
        _watched.clear()
        _received.clear()


def watch_signals() -> None:
    """Set our handlers again, as after the start of a library that sets its own; nothing outside `interruptible`."""
    for number in _watched:
        signal.signal(number, _interrupt)


def raise_if_interrupted() -> None:
    """Raise for a signal that has come already: what a library calls back may have swallowed the exception.

    Raises:
        KeyboardInterrupt: If there was one.
    """
    if _received:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
    if _received:
        # Not `print`: the stream may be in use by what was interrupted.
        os.write(2, f"{_watched[signal.Signals(number)]}\n".encode())
        os._exit(1)
    _received.append(number)
    raise KeyboardInterrupt
