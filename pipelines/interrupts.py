"""End a command on Ctrl-C or SIGTERM; nothing more is committed."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

RESUMES = "the same command resumes from here"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_watched: dict[signal.Signals, str] = {}
_received: list[int] = []


def interrupted_message(*, resumes: bool) -> str:
    """Return the message of an interrupted command. A command that does not resume starts from the beginning again."""
    return f"vidflow: interrupted; {RESUMES}" if resumes else "vidflow: interrupted"


@contextlib.contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Turn both signals into `KeyboardInterrupt` within the block; a second signal ends the process at once.

    Args:
        message: Printed when the process ends at once.
    """
    # A signal that the caller ignores stays ignored, such as under `nohup`.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _watched.update({number: message for number in _SIGNALS if before[number] != signal.SIG_IGN})
    watch_signals()
    try:
        yield
        raise_if_interrupted()
    finally:
        for number in _watched:
            # `before` is None for a handler that was set outside Python, which cannot be restored.
            signal.signal(number, before[number] or signal.SIG_DFL)
        _watched.clear()
        _received.clear()


def watch_signals() -> None:
    """Set our handlers again, such as after a library has set its own. Does nothing outside `interruptible`."""
    for number in _watched:
        signal.signal(number, _interrupt)


def raise_if_interrupted() -> None:
    """Raise again if a signal has arrived, because a library's callback may have swallowed the exception.

    Raises:
        KeyboardInterrupt: If there was one.
    """
    if _received:
        raise KeyboardInterrupt


def received_message() -> str | None:
    """Return what a command says that has received a signal; None if it has not."""
    return _watched.get(signal.Signals(_received[0])) if _received else None


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
    if _received:
        # Not `print`: the interrupted code may be using the stream.
        os.write(2, f"{_watched[signal.Signals(number)]}\n".encode())
        os._exit(1)
    _received.append(number)
    raise KeyboardInterrupt
