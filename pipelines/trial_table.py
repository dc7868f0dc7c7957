"""The trials of a sweep while they run: a live table on a terminal, plain lines in a log file."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.display import Pace, clock, count, log
from vidflow.config.tasks import Objective

State = Literal["waiting", "running", "done", "stopped", "failed"]
_ORDER: tuple[State, ...] = ("running", "failed", "waiting", "done", "stopped")
"""Which rows a small terminal shows first."""
_STYLES: dict[State, str] = {"waiting": "dim", "running": "cyan", "done": "green", "stopped": "yellow", "failed": "red"}
_MOST_NAMED = 4
"""Running trials that a line of a log file names."""


@dataclass
class TrialRow:
    """One trial.

    Attributes:
        name: What tells it from the others.
        num_epochs: Epochs that it has to train.
        objective: Metric, and whether more is better.
        state: What it is doing.
        epoch: Epochs done.
        latest: The metric after the last epoch.
        best: The best since this command watches, or of all epochs once the trial is over.
        seconds: Time that it has run under this command, without the time since `started`.
        started: When it started to run, on the monotonic clock; None if it does not run.
        attempt: How often it was started.
    """

    name: str
    num_epochs: int
    objective: Objective
    state: State = "waiting"
    epoch: int = 0
    latest: float = math.nan
    best: float = math.nan
    seconds: float = 0.0
    started: float | None = None
    attempt: int = 0

    def run_time(self) -> float:
        """Return for how many seconds it has run."""
        return self.seconds + (time.monotonic() - self.started if self.started is not None else 0.0)

    @property
    def is_over(self) -> bool:
        """Whether it is not trained any more."""
        return self.state in ("done", "stopped", "failed")


@dataclass
class TrialTable:
    """The trials of this command by key; `total` counts those too that a search has not drawn yet."""

    total: int
    rows: dict[str, TrialRow] = field(default_factory=dict)
    num_retries: int = 0
    _pace: Pace = field(default_factory=Pace)

    def start(self, key: str) -> None:
        """Show that a trial starts, for the first time or again."""
        row = self.rows[key]
        row.state, row.started, row.attempt = "running", time.monotonic(), row.attempt + 1

    def epoch(self, key: str, epoch: int, value: float, *, is_best: bool) -> None:
        """Show the result of an epoch."""
        row = self.rows[key]
        row.epoch, row.latest = epoch, value
        row.best = value if is_best else row.best
        self._pace.note(self._epochs_done())

    def retry(self, key: str, problem: str) -> None:
        """Show that a trial is started again after an error."""
        self.num_retries += 1
        row = self.rows[key]
        self._leave(row, "waiting")
        log.warning("sweep: %s: %s; attempt %d follows", row.name, problem, row.attempt + 1)

    def end(self, key: str, state: State, *, best: float = math.nan, problem: str = "") -> None:
        """Show that a trial is over, and say so in one line that stays."""
        row = self.rows[key]
        self._leave(row, state)
        row.best = best if math.isfinite(best) else row.best
        facts = [f"{row.epoch} of {row.num_epochs} epochs in {clock(row.run_time())}"]
        facts += [f"best {row.objective[0]} {row.best:.3f}"] if math.isfinite(row.best) else []
        facts += [f"{sum(each.is_over for each in self.rows.values())} of {self.total} trials finished"]
        told = f"sweep: {row.name} {state}, {', '.join(facts)}"
        if state == "failed":
            log.error("%s: %s", told, problem)
        else:
            log.info("%s", told)

    def render(self, height: int) -> RenderableType:
        """Return the table, with as many rows as fit."""
        rows = dict(self.rows)  # a copy, because this runs in the thread of the terminal
        metrics = {row.objective[0] for row in rows.values()}
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("trial", overflow="ellipsis", no_wrap=True)
        for title in ("epoch", metrics.copy().pop() if len(metrics) == 1 else "metric", "best", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        fitting = max(1, height - 3)  # without header, sums, and the line about the others
        chosen = set(sorted(rows, key=lambda key: _ORDER.index(rows[key].state))[:fitting])
        for key in rows:
            if key in chosen:
                table.add_row(*_cells(rows[key], is_named=len(metrics) > 1))
        hidden = Counter(rows[key].state for key in rows if key not in chosen)
        rest = (
            [Text("  and " + ", ".join(f"{n} {state}" for state, n in hidden.items()), style="dim")] if hidden else []
        )
        return Group(table, *rest, Text(self._sums(), style="bold"))

    def line(self) -> str:
        """Return the sums, and where the running trials are."""
        running = [row for row in list(self.rows.values()) if row.state == "running"]
        named = [f"{row.name} epoch {row.epoch}/{row.num_epochs}{_value(row)}" for row in running[:_MOST_NAMED]]
        more = [f"{len(running) - _MOST_NAMED} more"] if len(running) > _MOST_NAMED else []
        return self._sums() + (f"; running: {', '.join([*named, *more])}" if running else "")

    def _sums(self) -> str:
        rows = list(self.rows.values())
        num_over = sum(row.is_over for row in rows)
        known = sum(row.num_epochs for row in rows)
        left = sum(row.num_epochs - row.epoch for row in rows if not row.is_over)
        facts = [
            f"sweep: {num_over} of {self.total} trials finished",
            f"{self._epochs_done()} of {known} epochs",
            *self._pace.describe(left),
        ]
        facts += (
            [f"{sum(row.state == 'failed' for row in rows)} failed"] if any(r.state == "failed" for r in rows) else []
        )
        facts += [count(self.num_retries, "retry", "retries")] if self.num_retries else []
        return ", ".join(facts)

    def _epochs_done(self) -> int:
        return sum(row.epoch for row in list(self.rows.values()))

    @staticmethod
    def _leave(row: TrialRow, state: State) -> None:
        row.seconds, row.started, row.state = row.run_time(), None, state


def _cells(row: TrialRow, *, is_named: bool) -> Sequence[Text]:
    latest, best = ("-" if math.isnan(value) else f"{value:.3f}" for value in (row.latest, row.best))
    again = f", attempt {row.attempt}" if row.attempt > 1 else ""
    return (
        Text(row.name),
        Text(f"{row.epoch}/{row.num_epochs}"),
        Text(f"{row.objective[0]} {latest}" if is_named else latest),
        Text(best),
        Text(clock(row.run_time()) if row.attempt else ""),
        Text(row.state + again, style=_STYLES[row.state]),
    )


def _value(row: TrialRow) -> str:
    return "" if math.isnan(row.latest) else f" {row.objective[0]} {row.latest:.3f}"
