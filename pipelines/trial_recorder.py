"""Writes what trials report into the journal of their runs, in order and in a thread, so that Tune never waits."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from pipelines.sweep_runs import SweepRuns
from vidflow.config.schema import Trial
from vidflow.records import EpochResult
from vidflow.stages.address import Address
from vidflow.training.snapshot import load_result, write_failure


class TrialRecorder:
    """Opens, continues and closes the runs of trials; an error, as of a full disk, is raised by every later call."""

    def __init__(self, runs: SweepRuns, end_stopped: Callable[[str], None]) -> None:
        """Start the thread.

        Args:
            runs: The runs of the sweep, whose parent is open. Until `drain` returns, only the thread uses them.
            end_stopped: Marks the trial with a key as over if the scheduler has stopped it.
        """
        self._runs, self._end_stopped = runs, end_stopped
        self._thread = ThreadPoolExecutor(1, "recorder")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; after an error, what still waits is left to the next run of the command."""
        self._thread.shutdown(cancel_futures=error is not None)

    def start(self, trial: Trial, address: Address) -> None:
        """Open the run of a trial that starts."""
        self._submit(self._runs.open_trial, trial, address)

    def log_epoch(self, address: Address, result: EpochResult) -> None:
        """Log an epoch."""
        self._submit(self._runs.log_epoch, address.fingerprint, result)

    def end(self, trial: Trial, address: Address) -> None:
        """Close the run of a trial whose process has ended, if the trial is over."""
        self._submit(self._record, trial, address)

    def fail(self, trial: Trial, address: Address, error: str) -> None:
        """Mark a trial as failed, and close its run."""
        self._submit(self._fail, trial, address, error)

    def drain(self) -> None:
        """Wait until everything is in the journal.

        Raises:
            OSError: If it cannot be written.
        """
        while self._waiting:
            self._take_first()

    def _submit(self, write: Callable[..., Any], *arguments: Any) -> None:
        while self._waiting and self._waiting[0].done():
            self._take_first()
        self._waiting.append(self._thread.submit(write, *arguments))

    def _take_first(self) -> None:
        """Drop the first write, unless it has failed: Tune may take the first error that it sees for a trial's own."""
        self._waiting[0].result()
        self._waiting.popleft()

    def _record(self, trial: Trial, address: Address) -> None:
        self._end_stopped(address.fingerprint)
        result = load_result(address.directory)
        if result is not None:
            self._runs.record(trial, address, result)

    def _fail(self, trial: Trial, address: Address, error: str) -> None:
        result = write_failure(address.directory, key=address.fingerprint, settings=asdict(trial), error=error)
        self._runs.record(trial, address, result)
