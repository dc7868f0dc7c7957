"""Apply records to an MLflow store. Every record may be applied again: what the store has is found, not written again.

Few calls, as each costs a server tens of milliseconds: a trial takes twelve, and one more for each epoch.
"""

import base64
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import assert_never

from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from vidflow.files import file_sha256
from vidflow.store.layout import fetch
from vidflow.tracking.datasets import FeatureData, dataset_input
from vidflow.tracking.models import MODEL, ModelCode, ModelColumns, save_model
from vidflow.tracking.records import EpochEnded, FileMade, Record, RunEnded, RunOpened, fill_pages
from vidflow.tracking.store import open_experiment, silence_mlflow
from vidflow.tracking.view import VIEW_TAG

SWEEP_KEY = "vidflow.sweep_key"
TRIAL_KEY = "vidflow.trial_key"
EPOCH_SECONDS = "system/epoch_seconds"
"""Logged with every epoch in one transaction, so the store holds an epoch if and only if it holds this at its step."""

PARENT = "mlflow.parentRunId"
_RECORDED = "vidflow.recorded"
_MAX_BATCH = 100  # params or tags per call
_MAX_METRICS = 1000  # per call
_MAX_PARAM = 6000  # characters
_MAX_TAG = 8000  # characters
_MAX_FOUND = 1000  # runs per page of a search
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """A run as this writer knows it.

    Attributes:
        run: The run; its tags, params and status are kept up to date.
        epochs: The epochs that it has; None if that is not known.
        is_new: Whether this writer has made it, so that it has nothing that this writer does not know.
        owed: Params that go with the next call.
        model: Its model, once this writer has opened it.
    """

    run: Run
    epochs: set[int] | None = None
    is_new: bool = False
    owed: dict[str, str] = field(default_factory=dict)
    model: LoggedModel | None = None

    def owe(self, params: Mapping[str, str]) -> None:
        """Remember the params that the run lacks."""
        self.owed = {k: v[:_MAX_PARAM] for k, v in params.items() if k not in self.run.data.params}


class RunWriter:
    """Writes runs to one MLflow experiment. One process has one writer; after an error it makes another.

    Args:
        uri: Address of the store, as `check_uri` allows; a sqlite store is created if there is none.
        experiment: Name of the experiment; created if there is none.
        root: The experiment's root, where files of records lie.

    Attributes:
        experiment_id: MLflow's id of the experiment.

    Raises:
        ConfigError: If the store cannot be used.
    """

    def __init__(self, uri: str, experiment: str, root: Path) -> None:
        self._client, self.experiment_id = open_experiment(uri, experiment)
        self._uri, self._root = uri, root
        self._runs: dict[str, _Known] = {}
        self._searched: set[str] = set()

    def apply(self, record: Record) -> None:
        """Write a record. A record of a run that was deleted in the store is left out."""
        self._search_sweep(record.run.partition("/")[0])
        match record:
            case RunOpened():
                self._open(record)
            case EpochEnded():
                self.log_epochs([record])
            case FileMade():
                if (known := self._known(record.run)) is not None:
                    self._log_file(known, record)
            case RunEnded():
                if (known := self._known(record.run)) is not None:
                    self._end(known, record)
            case _:
                assert_never(record)

    def log_epochs(self, epochs: Iterable[EpochEnded]) -> None:
        """Write epochs of any runs, those of each run in one call."""
        by_run: dict[str, list[EpochEnded]] = {}
        for epoch in epochs:
            by_run.setdefault(epoch.run, []).append(epoch)
        for run, own in by_run.items():
            self._search_sweep(run.partition("/")[0])
            if (known := self._known(run)) is not None:
                self._log_epochs(known, own)

    def _known(self, run: str) -> _Known | None:
        if run not in self._runs:
            log.warning("run %s is not in the store (any more), so nothing is added to it", run)
        return self._runs.get(run)

    def ids(self, sweep: str) -> dict[str, str]:
        """Return name -> MLflow's id of a sweep's run and the runs of its trials; empty if there is no such run."""
        self._search_sweep(sweep)
        return {name: known.run.info.run_id for name, known in self._runs.items() if name.partition("/")[0] == sweep}

    def recorded(self, sweep: str) -> dict[str, str]:
        """Return name -> content of the runs of a sweep that are over, as `RunEnded` gave it."""
        self._search_sweep(sweep)
        return {
            name: known.run.data.tags[_RECORDED]
            for name, known in self._runs.items()
            if name.partition("/")[0] == sweep and _RECORDED in known.run.data.tags and _is_over(known.run)
        }

    def _search_sweep(self, key: str) -> None:
        """Find a sweep's run and those of its trials, once."""
        if key in self._searched:
            return
        for run in self._search(f"tags.`{SWEEP_KEY}` = '{key}'")[:1]:
            self._runs[key] = _Known(run)
            children = self._search(f"tags.`{PARENT}` = '{run.info.run_id}'")
            # Users may add runs of their own below it. Of two with one key, the older counts.
            for child in reversed([child for child in children if TRIAL_KEY in child.data.tags]):
                self._runs[f"{key}/{child.data.tags[TRIAL_KEY]}"] = _Known(child)
        self._searched.add(key)

    def _search(self, query: str) -> list[Run]:
        """Return all runs that a query finds, oldest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], query, max_results=_MAX_FOUND, order_by=["start_time ASC"], page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _open(self, record: RunOpened) -> None:
        known, (sweep, _, trial) = self._runs.get(record.run), record.run.partition("/")
        tags = self._stored_tags(record.tags)
        if known is None:
            if trial and sweep not in self._runs:
                log.warning("the run of sweep %s is not in the store (any more), so its trials are left out", sweep)
                return
            identity = {TRIAL_KEY: trial, PARENT: self._runs[sweep].run.info.run_id} if trial else {SWEEP_KEY: sweep}
            run = self._client.create_run(
                self.experiment_id, record.time, {**dict(list(tags.items())[:_MAX_BATCH]), **identity}, record.title
            )
            known = self._runs[record.run] = _Known(run, epochs=set(), is_new=True)
        elif known.run.info.status in ("FAILED", "KILLED"):
            self._client.update_run(known.run.info.run_id, status="RUNNING")
            known.run.info._status = "RUNNING"
        known.owe(record.params)
        tags = {k: v for k, v in tags.items() if known.run.data.tags.get(k) != v}
        if tags or (known.owed and not trial):  # the params of a trial go with its first epoch
            self._log(known, tags=tags)
        inputs = known.run.inputs.dataset_inputs if known.run.inputs is not None else []
        if record.datasets and not inputs:
            data = [dataset_input(FeatureData(**values)) for values in record.datasets]
            self._client.log_inputs(known.run.info.run_id, data)
        if record.config_yaml:
            self._upload(known, "config.yaml", record.config_yaml.encode())
        if record.view:
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, record.view)

    def _log(self, known: _Known, *, metrics: Sequence[Metric] = (), tags: Mapping[str, str] | None = None) -> None:
        """Write metrics and tags with the params that are owed: in one call, unless there are very many."""
        params = [Param(k, v) for k, v in known.owed.items()]
        texts = [RunTag(k, v) for k, v in (tags or {}).items()]
        number = max(len(params), len(texts), 1)
        for start in range(0, number, _MAX_BATCH):
            part, is_last = slice(start, start + _MAX_BATCH), start + _MAX_BATCH >= number
            # All metrics in the last call, so that the store has them only if it has all that goes before.
            points = list(metrics) if is_last else []
            self._client.log_batch(known.run.info.run_id, metrics=points, params=params[part], tags=texts[part])
        known.run.data.params.update(known.owed)
        known.run.data.tags.update(tags or {})
        known.owed = {}

    def _log_epochs(self, known: _Known, epochs: Iterable[EpochEnded]) -> None:
        """Write the epochs that a run lacks; those of one call are in one transaction."""
        if known.epochs is None:  # the store is asked once, because there is no other writer
            history = self._client.get_metric_history(known.run.info.run_id, EPOCH_SECONDS)
            known.epochs = {metric.step for metric in history}
        points: list[Metric] = []
        numbers: list[int] = []
        for each in epochs:
            if each.epoch in known.epochs or each.epoch in numbers:
                continue
            values = {**each.metrics, EPOCH_SECONDS: each.seconds}
            if len(points) + len(values) > _MAX_METRICS:
                self._log(known, metrics=points)
                known.epochs.update(numbers)
                points, numbers = [], []
            points += [Metric(k, v, each.time, each.epoch) for k, v in values.items()]
            numbers.append(each.epoch)
        if points:
            self._log(known, metrics=points)
            known.epochs.update(numbers)

    def _log_file(self, known: _Known, record: FileMade) -> None:
        try:
            content = fetch(self._root / record.path) if record.path else base64.b64decode(record.content)
        except FileNotFoundError:
            log.warning("%s is gone, so its run does not get it", self._root / record.path)
            return
        self._upload(known, record.artifact_path, content)

    def _upload(self, known: _Known, artifact_path: str, content: Path | bytes) -> None:
        """Store a file or bytes under a path within the run, and replace what was there."""
        target = PurePosixPath(artifact_path)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, target.name)
            if isinstance(content, bytes):
                local.write_bytes(content)
            else:
                shutil.copyfile(content, local)
            parent = None if target.parent == PurePosixPath() else str(target.parent)
            # Not the client's `log_artifact`, which asks for the run first.
            repository = get_artifact_repository(known.run.info.artifact_uri, self._uri)
            repository.log_artifact(str(local), parent)  # type: ignore[no-untyped-call]

    def _end(self, known: _Known, record: RunEnded) -> None:
        run = known.run
        if record.content and run.data.tags.get(_RECORDED) == record.content and _is_over(run):
            return
        known.owe(record.params)  # a failure, or a kill, may have come between the start and the first epoch
        if record.history:
            self._log_epochs(known, [EpochEnded(run=record.run, time=record.time, **each) for each in record.history])
        model_id = self._log_model(known, record) if record.model else None
        name, digest = record.data or (None, None)
        news = [
            Metric(k, v, record.time, record.step, model_id=model_id, dataset_name=name, dataset_digest=digest)
            for k, v in record.metrics.items()
            if model_id is not None or run.data.metrics.get(k) != v
        ]
        tags = {k: v for k, v in self._stored_tags(record.tags).items() if run.data.tags.get(k, "") != v}
        if record.content:
            tags[_RECORDED] = record.content
        if news or tags or known.owed:
            self._log(known, metrics=news, tags=tags)
            run.data.metrics.update(record.metrics)
        if run.info.status != record.status:
            self._client.set_terminated(run.info.run_id, record.status, record.time)
            run.info._status = record.status

    def _log_model(self, known: _Known, record: RunEnded) -> str | None:
        """Store the model of a run and replace an earlier one; None if its file is gone or has changed since."""
        values = dict(record.model)
        file, sha256 = self._root / values.pop("path"), values.pop("sha256")
        try:
            weights = fetch(file)
        except FileNotFoundError:
            weights = None
        if weights is None or file_sha256(weights) != sha256:
            log.warning("%s is gone, or is another since, so the run of that trial gets no model of it", file)
            return None
        model = self._open_model(known)
        with tempfile.TemporaryDirectory() as folder, silence_mlflow():
            place = Path(folder, MODEL)
            save_model(
                place,
                model_id=model.model_id,
                run_id=known.run.info.run_id,
                code=ModelCode(**values["code"]),
                file=weights,
                columns=ModelColumns(**values["columns"]),
            )
            repository = get_artifact_repository(model.artifact_location, self._uri)
            repository.log_artifacts(str(place))  # type: ignore[no-untyped-call]
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _open_model(self, known: _Known) -> LoggedModel:
        """Find or create the model of a run; a kill may have left one that the run does not name yet."""
        if known.model is not None:
            return known.model
        run = known.run
        named = [output.model_id for output in run.outputs.model_outputs] if run.outputs is not None else []
        query = f"source_run_id = '{run.info.run_id}'"
        found = [] if known.is_new else self._client.search_logged_models([self.experiment_id], query, max_results=1)
        if found:
            model: LoggedModel = found[0]
        else:
            params = {**run.data.params, **known.owed}
            model = self._client.create_logged_model(
                self.experiment_id, MODEL, run.info.run_id, params=params, model_type=params.get("task")
            )
        if model.model_id not in named:
            self._client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
        known.model = model
        return model

    def _stored_tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Return tags as the store takes them: not too long, and with the addresses of pages."""
        pages = {
            name: f"/experiments/{self.experiment_id}/runs/{known.run.info.run_id}"
            for name, known in self._runs.items()
        }
        return {name: fill_pages(text, pages)[:_MAX_TAG] for name, text in tags.items()}


def _is_over(run: Run) -> bool:
    return run.info.status in ("FINISHED", "FAILED")
