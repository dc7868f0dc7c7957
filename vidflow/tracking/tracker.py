"""Say what happens to the runs of one sweep. Everything is written to a journal first, then sent to the store.

So nobody waits for the store. If it is away, what it lacks waits under the root, for this process or a later one.
"""

import base64
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from vidflow.config.schema import Scalar
from vidflow.config.tracking_uri import without_credentials
from vidflow.files import file_sha256
from vidflow.records import EpochResult
from vidflow.store.journal import Journal
from vidflow.store.layout import fetch
from vidflow.tracking.datasets import FeatureData
from vidflow.tracking.delivery import Delivery
from vidflow.tracking.models import ModelCode, ModelColumns
from vidflow.tracking.records import (
    EpochEnded,
    FileMade,
    Record,
    RunEnded,
    RunOpened,
    RunStatus,
    from_json,
    name_run,
    now_milliseconds,
    to_json,
)
from vidflow.tracking.view import RunsView

_INTERRUPTED_SECONDS = 5.0
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepIds:
    """MLflow's ids of a sweep; empty if the store does not have all records yet.

    Attributes:
        experiment_id: The experiment.
        run_id: The sweep's run.
        trials: Key -> run of a trial.
    """

    experiment_id: str = ""
    run_id: str = ""
    trials: dict[str, str] = field(default_factory=dict)

    def details(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return what the manifest of a sweep with these trials says of its runs."""
        runs = {key: self.trials[key] for key in keys if key in self.trials}
        return {"experiment_id": self.experiment_id, "run_id": self.run_id, "runs": runs}


class Tracker:
    """Writes the runs of a sweep and its trials. Only the driver has a tracker.

    Within a `with` block runs are sent; at its end it waits until the store has them, or does not answer. If the block
    ends with an error, the runs that are open are marked as killed.

    Args:
        root: The experiment's root.
        sweep: Key of the sweep, by which its run is found.
        uri: Address of the store, as `check_uri` allows; a sqlite store is created if there is none.
        experiment: Name of the experiment; created if there is none.
    """

    def __init__(self, root: Path, sweep: str, *, uri: str, experiment: str) -> None:
        self.sweep = name_run(sweep)
        self._root = root
        self._journal = Journal(root, sweep, name_store(uri, experiment, root))
        self._delivery = Delivery(self._journal, uri, experiment)
        self._open: dict[str, dict[str, str]] = {}

    @property
    def problem(self) -> str:
        """Why the store did not take the last record; empty if it did."""
        return self._delivery.problem

    def __enter__(self) -> Self:
        """Start to send."""
        self._delivery.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the store has all records, or does not answer; after an error, for seconds only."""
        try:
            if error is not None:
                with contextlib.suppress(OSError):  # of a full disk, which is the error
                    for run in list(self._open):
                        self._end(RunEnded(run=run, time=now_milliseconds(), status="KILLED"))
            self._delivery.settle(_INTERRUPTED_SECONDS if error is not None else None)
        finally:
            self._delivery.close()

    def open_sweep(
        self,
        *,
        name: str,
        params: Mapping[str, Scalar | None],
        config_yaml: str,
        tags: Mapping[str, str] = _NOTHING,
        datasets: Sequence[FeatureData] = (),
        view: RunsView | None = None,
    ) -> None:
        """Find or create the run of the sweep.

        Args:
            name: Name of the run in the UI.
            params: Settings; params that the run already has are not changed.
            config_yaml: The merged configuration, stored as `config.yaml`.
            tags: Tags of the run; new values replace old ones.
            datasets: The feature sets that it reads.
            view: What the UI shows first.
        """
        opened = _opened(self.sweep, name, params, tags, datasets)
        shown = view.to_tag() if view is not None else ""
        self._add(replace(opened, config_yaml=config_yaml, view=shown))
        self._open[self.sweep] = opened.params

    def open_trial(
        self,
        key: str,
        *,
        name: str,
        params: Mapping[str, Scalar | None],
        tags: Mapping[str, str] = _NOTHING,
        datasets: Sequence[FeatureData] = (),
    ) -> str:
        """Find or create the run of a trial, and return our name of it; a failed run is reopened.

        The arguments are those of `open_sweep`.
        """
        run = name_run(self.sweep, key)
        opened = _opened(run, name, params, tags, datasets)
        self._add(opened)
        self._open[run] = opened.params
        return run

    def log_epoch(self, run: str, result: EpochResult) -> None:
        """Log all metrics of an epoch, unless the run has that epoch."""
        self._add(
            EpochEnded(
                run=run,
                time=now_milliseconds(),
                epoch=result.epoch,
                metrics=dict(result.metrics),
                seconds=result.seconds,
            )
        )

    def log_file(self, run: str, content: Path | bytes, artifact_path: str) -> None:
        """Store a file or bytes under a path within a run, and replace what was there.

        Args:
            run: The run.
            content: A file under the root, or the bytes of the file.
            artifact_path: Folders and file name within the run, with `/` between them.
        """
        made = FileMade(run=run, time=now_milliseconds(), artifact_path=artifact_path)
        if isinstance(content, bytes):
            self._add(replace(made, content=base64.b64encode(content).decode()))
        else:
            self._add(replace(made, path=str(content.relative_to(self._root))))

    def finish(
        self,
        run: str,
        status: RunStatus,
        *,
        metrics: Mapping[str, float] = MappingProxyType({}),
        step: int = 0,
        tags: Mapping[str, str] = _NOTHING,
        history: Iterable[EpochResult] = (),
        model: tuple[ModelCode, Path, ModelColumns] | None = None,
        data: FeatureData | None = None,
        content: str = "",
    ) -> None:
        """Close a run.

        Args:
            run: The run.
            status: How it ended.
            metrics: Metrics of the whole run, such as `best/val/top1`; they belong to its model, if it has one.
            step: Epoch that they belong to.
            tags: Tags to add; new values replace old ones, and an empty value is not added.
            history: All epochs; the run gets those that it lacks, such as after a kill.
            model: How its model is made, the file that it is made from, and its columns, for
                `mlflow.pyfunc.load_model("runs:/RUN_ID/model")`.
            data: Feature set that the metrics were measured on.
            content: Digest of all that was written to the run, for `recorded`.
        """
        self._end(
            RunEnded(
                run=run,
                time=now_milliseconds(),
                status=status,
                metrics=dict(metrics),
                step=step,
                tags=dict(tags),
                data=[data.name, data.digest] if data is not None else [],
                history=[
                    {"epoch": each.epoch, "metrics": dict(each.metrics), "seconds": each.seconds} for each in history
                ],
                model=self._describe_model(*model) if model is not None else {},
                content=content,
            )
        )

    def recorded(self) -> dict[str, str]:
        """Return key -> content of the trials that are over, as far as the store and the journal know them."""
        waiting = map(from_json, self._journal.read_left())
        ended = {record.run: record.content for record in waiting if isinstance(record, RunEnded) and record.content}
        stored = self._delivery.ask(lambda writer: writer.recorded(self.sweep), dict[str, str]())
        return {run.partition("/")[2]: content for run, content in {**ended, **stored}.items()}

    def ids(self) -> SweepIds:
        """Return MLflow's ids, when the store has all records."""
        experiment_id, runs = self._delivery.ask(
            lambda writer: (writer.experiment_id, writer.ids(self.sweep)), ("", dict[str, str]())
        )
        trials = {name.partition("/")[2]: run_id for name, run_id in runs.items() if name != self.sweep}
        return SweepIds(experiment_id=experiment_id, run_id=runs.get(self.sweep, ""), trials=trials)

    def _describe_model(self, code: ModelCode, file: Path, columns: ModelColumns) -> dict[str, object]:
        return {
            "code": asdict(code),
            "columns": asdict(columns),
            "path": str(file.relative_to(self._root)),
            "sha256": file_sha256(fetch(file)),
        }

    def _end(self, record: RunEnded) -> None:
        self._add(replace(record, params=self._open.get(record.run, {})))
        self._open.pop(record.run, None)

    def _add(self, record: Record) -> None:
        self._delivery.add(self._journal.append(to_json(record)))


def name_store(uri: str, experiment: str, root: Path) -> str:
    """Return the name of a store and an experiment in it, without a password; it stays if the root is moved."""
    return f"{without_credentials(uri).replace(str(root.resolve()), 'ROOT')} {experiment}"


def _opened(
    run: str,
    title: str,
    params: Mapping[str, Scalar | None],
    tags: Mapping[str, str],
    datasets: Sequence[FeatureData],
) -> RunOpened:
    return RunOpened(
        run=run,
        time=now_milliseconds(),
        title=title,
        params={name: str(value) for name, value in params.items()},
        tags=dict(tags),
        datasets=[asdict(data) for data in datasets],
    )


__all__ = ["SweepIds", "Tracker", "name_store"]
