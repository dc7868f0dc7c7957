"""Bring records from a journal to a store, in order and in a thread, for as long as the store answers.

A store that does not answer is tried again and again with growing pauses; meanwhile the records wait in the journal.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from vidflow.config.tracking_uri import without_credentials
from vidflow.errors import ConfigError
from vidflow.store.journal import Journal, drop_record, read_record
from vidflow.store.layout import set_aside
from vidflow.tracking.records import EpochEnded, Record, from_json
from vidflow.tracking.runs import RunWriter
from vidflow.tracking.store import FAILURES, brief_retries, reason

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds
_ANSWER_SECONDS = 10
_MAX_TOGETHER = 64  # records
T = TypeVar("T")
log = logging.getLogger(__name__)


class Delivery:
    """The thread that empties a journal.

    Args:
        journal: Where records wait.
        uri: Address of the store.
        experiment: Name of the experiment.
    """

    def __init__(self, journal: Journal, uri: str, experiment: str) -> None:
        self._journal, self._uri, self._experiment = journal, uri, experiment
        self._writer: RunWriter | None = None
        self._waiting = deque(journal.left)
        self._failures = self._failures_in_a_row = 0
        self._is_hurried = self._is_over = False
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(1, "mlflow")
        self._thread: Future[None] = Future()
        self.problem = ""
        """Why the last try has failed; empty if it has not."""

    def start(self) -> None:
        """Start to deliver."""
        self._thread = self._pool.submit(self._run)

    def add(self, path: Path) -> None:
        """Deliver one more record of the journal, at some time."""
        self._raise_bug()
        with self._changed:
            self._waiting.append(path)
            self._changed.notify_all()

    def settle(self, seconds: float | None = None) -> int:
        """Wait until the store has all records, or another try has failed; return how many still wait.

        Args:
            seconds: How long to wait at most; None waits for as long as the store answers.
        """
        with self._changed:
            before, self._is_hurried = self._failures, True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self._waiting or self._failures > before or self._thread.done(), timeout=seconds
            )
            number = len(self._waiting)
        self._raise_bug()
        return number

    def ask(self, question: Callable[[RunWriter], T], otherwise: T) -> T:
        """Return an answer from the store when it has all records; or another value if it does not answer.

        No other thread may add records meanwhile.
        """
        if self.settle():
            return otherwise
        try:
            with brief_retries(0, seconds=_ANSWER_SECONDS):
                return question(self._open())
        except (*FAILURES, ConfigError) as error:
            self._note_failure(error)
            return otherwise

    def close(self) -> None:
        """End the thread after the record that it is at; what still waits stays in the journal."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._pool.shutdown()
        self._raise_bug()

    def _raise_bug(self) -> None:
        """Raise an error that is no failure of the store."""
        if self._thread.done():
            self._thread.result()

    def _run(self) -> None:
        while paths := self._next():
            try:
                with brief_retries(0, seconds=_ANSWER_SECONDS):
                    number = self._deliver(paths)
                for path in paths[:number]:
                    drop_record(path)
            except (*FAILURES, ConfigError) as error:
                self._note_failure(error)
                self._pause()
            else:
                self._note_success(number)

    def _next(self) -> list[Path]:
        """Wait for records, and return the first of those that wait; none if this is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over)
            return [] if self._is_over else list(islice(self._waiting, _MAX_TOGETHER))

    def _deliver(self, paths: list[Path]) -> int:
        """Write the first record; with it, if it is an epoch, all epochs that follow. Return how many were written."""
        number, epochs = 0, []
        for path in paths:
            record = _read(path)
            if isinstance(record, EpochEnded):
                epochs.append(record)
            elif epochs:
                break
            number += 1
            if not isinstance(record, EpochEnded):
                if record is not None:
                    self._open().apply(record)
                break
        if epochs:
            self._open().log_epochs(epochs)
        return number

    def _open(self) -> RunWriter:
        if self._writer is None:
            self._writer = RunWriter(self._uri, self._experiment, self._journal.root)
        return self._writer

    def _note_success(self, delivered: int) -> None:
        with self._changed:
            for _ in range(delivered):
                self._waiting.popleft()
            number = len(self._waiting)
            self._changed.notify_all()
        if self._failures_in_a_row:
            self._failures_in_a_row, self.problem = 0, ""
            log.info("%s stores runs again; %d records follow", without_credentials(self._uri), number)

    def _note_failure(self, error: Exception) -> None:
        self._writer = None  # a call that seems to have failed may have worked, so what is known is asked again
        problem = reason(error)
        if not self._failures_in_a_row:
            log.warning(
                "%s does not store runs (%s); their records wait in %s, and are sent when it does",
                without_credentials(self._uri), problem, self._journal.directory,
            )  # fmt: skip
        with self._changed:
            self.problem = problem
            self._failures += 1
            self._failures_in_a_row += 1
            self._changed.notify_all()

    def _pause(self) -> None:
        seconds = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (self._failures_in_a_row - 1))
        with self._changed:
            self._is_hurried = False
            self._changed.wait_for(lambda: self._is_hurried or self._is_over, timeout=seconds)


def _read(path: Path) -> Record | None:
    """Return a record; None if it cannot be read, after which it is set aside and counts as written."""
    values = read_record(path)
    record = from_json(values) if values is not None else None
    if values is not None and record is None:
        log.warning("%s: not a record of this version of vidflow; %s", path, set_aside(path))
    return record
