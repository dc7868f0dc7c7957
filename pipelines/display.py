"""What a command shows while it is at work: a moving view on a terminal, else plain lines now and then; owner of rich.

A terminal's clock ticks whether or not anything else happens. Log lines appear above the moving view.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vidflow.objects import show_urls

SECONDS_TO_FIRST_LINE = 1.0
SECONDS_BETWEEN_LINES = 10.0
_REFRESHES_PER_SECOND = 4
_BAR_WIDTH = 24
log = logging.getLogger("vidflow")
_terminals: list[Console] = []
"""The console of the moving view, while there is one."""


class LogHandler(logging.Handler):
    """Writes log lines to stderr, above a moving view if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = show_urls(self.format(record))
        terminal = _terminals[-1:]  # a slice, because another thread may end the view now
        if terminal:
            # Lines are left as they are, because people copy the commands in them.
            terminal[0].print(Text(text), soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


class View(Protocol):
    """Something to show while it changes."""

    def render(self, height: int) -> RenderableType:
        """Return what a terminal shows, in at most `height` lines."""

    def line(self) -> str:
        """Return what a log file shows."""


@contextlib.contextmanager
def shown(view: View) -> Iterator[None]:
    """Show a view within the block. A view within a view is not shown, because a terminal has one last line."""
    if _terminals:
        yield
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _live(view):
            yield
    else:
        with _lines(view.line):
            yield


@contextlib.contextmanager
def _live(view: View) -> Iterator[None]:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    live = Live(
        console=console,
        get_renderable=lambda: view.render(max(3, console.height - 2)),
        refresh_per_second=_REFRESHES_PER_SECOND,
        transient=True,
        redirect_stdout=False,  # it may be a file that the user wants
    )
    with live:
        console.show_cursor(True)  # a process that is killed could not bring it back
        _terminals.append(console)
        try:
            yield
        finally:
            _terminals.pop()


@contextlib.contextmanager
def _lines(line: Callable[[], str]) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        seconds = SECONDS_TO_FIRST_LINE
        while not over.wait(seconds):
            log.info("%s", line())
            seconds = SECONDS_BETWEEN_LINES

    thread = threading.Thread(target=write, name="progress lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Waiting:
    """A wait whose end is not known."""

    def __init__(self, what: str) -> None:
        """Start the clock.

        Args:
            what: What is waited for.
        """
        self._what, self._started = what, time.monotonic()

    def render(self, height: int) -> RenderableType:  # noqa: ARG002 - it is one line
        """Return what is waited for and for how long."""
        return Text(self.line(), style="dim")

    def line(self) -> str:
        """Return what is waited for and for how long."""
        return f"{self._what} ... {clock(time.monotonic() - self._started)}"


class Pace:
    """How fast work goes, and how long the rest will take; measured from the first news on, not from the start."""

    def __init__(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self.rate = 0.0

    def note(self, num_done: int) -> None:
        """Take in how many are done by now."""
        now = time.monotonic()
        if self._first is None:
            if num_done:
                self._first = now, num_done
            return
        since, before = self._first
        if num_done > before and now > since:
            self.rate = (num_done - before) / (now - since)

    def describe(self, num_left: int) -> list[str]:
        """Return the time so far, and the time that is left as far as it is known."""
        seconds = num_left / self.rate if self.rate else 0.0
        left = [f"about {clock(seconds)} left"] if seconds >= 1 else []
        return [f"{clock(time.monotonic() - self.started)} so far", *left]


class Bar:
    """Progress of work that is counted."""

    def __init__(self, name: str, total: int | None, *, unit: str, num_workers: int = 0) -> None:
        """Start at nothing done.

        Args:
            name: What is done, such as `shard`.
            total: How many there are; None if nobody knows, as of a camera.
            unit: What is counted, in the plural.
            num_workers: Workers that are about to start.
        """
        self._name, self.total, self._unit, self._num_workers = name, total, unit, num_workers
        self._done = self._rejects = 0
        self.num_retries = 0
        self._pace = Pace()

    def update(self, num_done: int, num_rejects: int = 0) -> None:
        """Take in how many are done by now, and how many of them are rejects."""
        self._done, self._rejects = num_done, num_rejects
        self._pace.note(num_done)

    def render(self, height: int) -> RenderableType:  # noqa: ARG002 - it is one line
        """Return a bar with its numbers."""
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.total, completed=self._done, width=_BAR_WIDTH)
        row.add_row(Text(self._name, style="bold"), bar, Text("  ".join([self._numbers(), *self._facts()])))
        return row

    def line(self) -> str:
        """Return the same numbers as text."""
        percent = f" ({100 * self._done / self.total:.0f} %)" if self.total else ""
        return ", ".join([f"{self._name}: {self._numbers()}{percent}", *self._facts()])

    def _numbers(self) -> str:
        return f"{self._done}{'' if self.total is None else f' of {self.total}'} {self._unit}"

    def _facts(self) -> list[str]:
        facts = [f"{self._pace.rate:.1f} {self._unit}/s"] if self._pace.rate else []
        facts += self._pace.describe(self.total - self._done if self.total is not None else 0)
        if not self._done and self._num_workers:
            facts.append(f"starting {count(self._num_workers, 'worker')}")
        facts += [count(self._rejects, "reject")] if self._rejects else []
        facts += [count(self.num_retries, "retry", "retries")] if self.num_retries else []
        return facts


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def clock(seconds: float) -> str:
    """Return a duration as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
