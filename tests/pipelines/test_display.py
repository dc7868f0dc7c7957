"""What a command shows: plain lines in a log file, and a moving view on a terminal that keeps every log line."""

import contextlib
import io
import logging
import os
import pty
import re
import sys
import time

import pytest

from pipelines.display import Bar, LogHandler, clock, shown
from pipelines.trial_table import TrialRow, TrialTable
from vidflow.config.tasks import Objective

log = logging.getLogger("vidflow")


@pytest.fixture
def logged(monkeypatch):
    """Log to stderr as the command does, with lines in quick succession."""
    handler, level = LogHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    for name in ("SECONDS_TO_FIRST_LINE", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(f"pipelines.display.{name}", 0.05)
    yield
    log.removeHandler(handler)
    log.setLevel(level)


def table_of(num_trials: int) -> TrialTable:
    rows = {str(n): TrialRow(f"seed={n}", 10, Objective("val/top1", "max")) for n in range(num_trials)}
    return TrialTable(total=num_trials, rows=rows)


def test_a_log_file_gets_plain_lines_while_nothing_is_finished_yet(logged):
    bar = Bar("shard", 800, unit="clips", num_workers=2)
    with contextlib.redirect_stderr(io.StringIO()) as file, shown(bar):
        time.sleep(0.2)
        bar.update(10)
        time.sleep(0.1)
        bar.update(30, 1)
        bar.num_retries += 1
        time.sleep(0.2)
    said = file.getvalue()
    assert "\r" not in said
    assert "\x1b" not in said
    lines = said.splitlines()
    assert re.fullmatch(r"shard: 0 of 800 clips \(0 %\), 0:\d\d so far, starting 2 workers", lines[0])
    assert re.fullmatch(
        r"shard: 30 of 800 clips \(4 %\), [\d.]+ clips/s, 0:\d\d so far, about \d+:\d\d left, 1 reject, 1 retry",
        lines[-1],
    )


@contextlib.contextmanager
def terminal():
    """A terminal in place of stderr, and a function that reads what has arrived there."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w", buffering=1) as stream, contextlib.redirect_stderr(stream):
        yield lambda: os.read(ours, 1 << 20).decode()
    os.close(ours)


def test_log_lines_and_prints_stay_on_a_terminal_whose_view_moves(logged, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    command = "next: vidflow extract conf/demo.yaml " + "root=somewhere " * 10
    with terminal() as read:
        with shown(Bar("shard", 800, unit="clips")):
            time.sleep(0.6)
            log.info(command)
            print("from a worker", file=sys.stderr)
            time.sleep(0.6)
        said = read()
    assert "0 of 800 clips" in said
    assert re.search(r"0:\d[1-9] so far", said)  # the clock ticks although nothing happens
    assert command in said  # on one line, ready to be copied
    assert "from a worker" in said
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")  # the cursor is there again


def test_the_table_names_what_runs_and_fits_a_small_terminal(logged):
    from rich.console import Console

    table = table_of(40)
    for key in ("30", "31"):
        table.start(key)
    table.epoch("30", 3, 0.5, is_best=True)
    table.epoch("30", 4, 0.4, is_best=False)
    with contextlib.redirect_stderr(io.StringIO()) as file:
        table.retry("31", "its worker died")
        table.start("31")
        table.end("0", "failed", problem="the loss is nan")
    console = Console(width=100, file=io.StringIO())
    console.print(table.render(height=10))
    screen = console.file.getvalue().splitlines()
    assert screen[0].split() == ["trial", "epoch", "val/top1", "best", "time", "state"]
    assert len(screen) <= 10
    cells = [line.split() for line in screen]
    assert ["seed=30", "4/10", "0.400", "0.500", "0:00", "running"] in cells
    assert ["seed=31", "0/10", "-", "-", "0:00", "running,", "attempt", "2"] in cells
    assert "  and 33 waiting" in [line.rstrip() for line in screen]
    assert screen[-1].startswith("sweep: 1 of 40 trials finished, 4 of 400 epochs, 0:00 so far, 1 failed, 1 retry")
    assert file.getvalue().splitlines() == [
        "sweep: seed=31: its worker died; attempt 2 follows",
        "sweep: seed=0 failed, 0 of 10 epochs in 0:00, 1 of 40 trials finished: the loss is nan",
    ]


def test_a_clock_is_read_as_a_clock():
    assert [clock(seconds) for seconds in (0.9, 61, 3600)] == ["0:00", "1:01", "1:00:00"]
