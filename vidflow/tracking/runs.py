"""Write the runs of sweeps and trials. Every call may be repeated: what the store has is found, not written again."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal

from mlflow.entities import LoggedModelOutput, Metric, Param, Run, RunTag

from vidflow.config.schema import Scalar
from vidflow.config.tracking_uri import without_credentials
from vidflow.records import EpochResult
from vidflow.tracking.datasets import FeatureData, dataset_input
from vidflow.tracking.models import MODEL, ModelCode, ModelColumns, save_model
from vidflow.tracking.store import open_experiment, silence_mlflow
from vidflow.tracking.view import VIEW_TAG, RunsView

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

SWEEP_KEY = "vidflow.sweep_key"
TRIAL_KEY = "vidflow.trial_key"
EPOCH_SECONDS = "system/epoch_seconds"
"""Logged with every epoch in one transaction, so the store holds an epoch if and only if it holds this at its step."""

PARENT = "mlflow.parentRunId"
_RECORDED = "vidflow.recorded"
_MAX_BATCH = 100  # params or tags per call
_MAX_PARAM = 6000  # characters
_MAX_TAG = 8000  # characters
_MAX_FOUND = 1000  # runs per page of a search
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Tracker:
    """Writes sweeps and trials to one MLflow experiment. Only the driver has a tracker.

    Args:
        uri: Address of the store, as `check_uri` allows; a sqlite store is created at first use.
        experiment: Name of the experiment; created if there is none.

    Attributes:
        experiment_id: MLflow's id of the experiment.

    Raises:
        ConfigError: If the store cannot be used.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._client, self.experiment_id = open_experiment(uri, experiment)
        self._logged_epochs: dict[str, set[int]] = {}
        self._trials: dict[str, dict[str, Run]] = {}
        self._found: dict[str, Run] = {}
        self._models: dict[str, str] = {}

    def sweep_run(
        self,
        key: str,
        *,
        name: str,
        params: Mapping[str, Scalar | None],
        config_yaml: str,
        tags: Mapping[str, str] = _NOTHING,
        datasets: Sequence[FeatureData] = (),
    ) -> str:
        """Find or create the run of a sweep.

        Args:
            key: The sweep's fingerprint, by which the run is found.
            name: Name of the run in the UI.
            params: Settings; params that the run already has are not changed.
            config_yaml: The merged configuration, stored as `config.yaml`.
            tags: Tags of the run; new values replace old ones.
            datasets: The feature sets that it reads.

        Returns:
            Its run id.
        """
        _check_key(key)
        found = self._search(f"tags.`{SWEEP_KEY}` = '{key}'")
        run = self._reopen(found[0]) if found else self._create({SWEEP_KEY: key}, name)
        self._describe(run, params, tags, datasets)
        run_id = str(run.info.run_id)
        self.log_file(run_id, without_credentials(config_yaml).encode(), "config.yaml")
        children = self._search(f"tags.`{PARENT}` = '{run_id}'") if found else []
        # Users may add runs of their own below it.
        trials = [child for child in children if TRIAL_KEY in child.data.tags]
        self._trials[run_id] = {child.data.tags[TRIAL_KEY]: child for child in reversed(trials)}
        self._found |= {child.info.run_id: child for child in trials}
        return run_id

    def show_first(self, view: RunsView) -> None:
        """Set what the UI shows first."""
        self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, view.to_tag())

    def trial_run(
        self,
        sweep_run_id: str,
        key: str,
        *,
        name: str,
        params: Mapping[str, Scalar | None],
        tags: Mapping[str, str] = _NOTHING,
        datasets: Sequence[FeatureData] = (),
    ) -> str:
        """Find or create the run of a trial below a sweep that this tracker has opened; a failed run is reopened.

        The arguments are those of `sweep_run`.
        """
        _check_key(key)
        found = self._trials[sweep_run_id].get(key)
        run = self._reopen(found) if found else self._create({TRIAL_KEY: key, PARENT: sweep_run_id}, name)
        self._trials[sweep_run_id][key] = run
        self._describe(run, params, tags, datasets)
        return str(run.info.run_id)

    def log_epoch(self, run_id: str, result: EpochResult) -> None:
        """Log all metrics of an epoch in one call; do nothing if the run has that epoch."""
        epochs = self._read_epochs(run_id)
        if result.epoch in epochs:
            return
        now = _now_milliseconds()
        values = {**result.metrics, EPOCH_SECONDS: result.seconds}
        self._client.log_batch(run_id, metrics=[Metric(k, v, now, result.epoch) for k, v in values.items()])
        epochs.add(result.epoch)

    def log_history(self, run_id: str, history: Iterable[EpochResult]) -> None:
        """Log the epochs of a trial that its run lacks, such as after a kill."""
        for result in history:
            self.log_epoch(run_id, result)

    def log_file(self, run_id: str, content: Path | bytes, artifact_path: str) -> None:
        """Store a file or bytes under a path within the run, and replace what was there.

        Args:
            run_id: The run.
            content: A local file, or the bytes of the file.
            artifact_path: Folders and file name within the run, with `/` between them.
        """
        target = PurePosixPath(artifact_path)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, target.name)
            if isinstance(content, bytes):
                local.write_bytes(content)
            else:
                shutil.copyfile(content, local)
            parent = None if target.parent == PurePosixPath() else str(target.parent)
            self._client.log_artifact(run_id, str(local), parent)

    def log_model(self, run_id: str, *, code: ModelCode, file: Path, columns: ModelColumns) -> str:
        """Store the model of a run, for `mlflow.pyfunc.load_model("runs:/RUN_ID/model")`, and replace an earlier one.

        Args:
            run_id: The run, opened by this tracker.
            code: How the model is made from the file.
            file: File that the model is made from, such as weights.
            columns: Its input and output.

        Returns:
            MLflow's id of the model.
        """
        model_id = self._open_model(run_id)
        with tempfile.TemporaryDirectory() as folder, silence_mlflow():
            place = Path(folder, MODEL)
            save_model(place, model_id=model_id, run_id=run_id, code=code, file=file, columns=columns)
            self._client.log_model_artifacts(model_id, str(place))
        self._client.finalize_logged_model(model_id, "READY")
        return model_id

    def is_recorded(self, run_id: str, content: str) -> bool:
        """Whether `finish` has closed a run, which this tracker has opened, with this content."""
        run = self._found[run_id]
        return run.data.tags.get(_RECORDED) == content and run.info.status in ("FINISHED", "FAILED")

    def finish(
        self,
        run_id: str,
        status: RunStatus,
        *,
        metrics: Mapping[str, float] = MappingProxyType({}),
        step: int = 0,
        tags: Mapping[str, str] = _NOTHING,
        model_id: str | None = None,
        data: FeatureData | None = None,
        content: str = "",
    ) -> None:
        """Close a run that this tracker has opened.

        Args:
            run_id: The run.
            status: How it ended.
            metrics: Metrics of the whole run, such as `best/val/top1`; without a model, values that the run already
                has are skipped.
            step: Epoch that they belong to.
            tags: Tags to add; new values replace old ones, and an empty value is not added.
            model_id: Model that the metrics belong to.
            data: Feature set that they were measured on.
            content: Digest of all that was written to the run, for `is_recorded`.
        """
        run, now = self._found[run_id], _now_milliseconds()
        name, digest = (data.name, data.digest) if data is not None else (None, None)
        news = [
            Metric(k, v, now, step, model_id=model_id, dataset_name=name, dataset_digest=digest)
            for k, v in metrics.items()
            if model_id is not None or run.data.metrics.get(k) != v
        ]
        changed = {k: v for k, v in _stored(tags, _MAX_TAG).items() if run.data.tags.get(k, "") != v}
        if content:
            changed[_RECORDED] = content
        if news or changed:
            self._client.log_batch(run_id, metrics=news, tags=[RunTag(k, v) for k, v in changed.items()])
            run.data.metrics.update(metrics)
            run.data.tags.update(changed)
        if run.info.status != status:
            self._client.set_terminated(run_id, status)
            run.info._status = status

    def _create(self, identity: Mapping[str, str], name: str) -> Run:
        run = self._client.create_run(self.experiment_id, tags=dict(identity), run_name=without_credentials(name))
        self._found[run.info.run_id] = run
        self._logged_epochs[run.info.run_id] = set()
        return run

    def _reopen(self, run: Run) -> Run:
        """Remember a run that the store had, and mark it as running if it failed or was killed."""
        self._found[run.info.run_id] = run
        if run.info.status in ("FAILED", "KILLED"):
            self._client.update_run(run.info.run_id, status="RUNNING")
            run.info._status = "RUNNING"
        return run

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

    def _describe(
        self,
        run: Run,
        params: Mapping[str, Scalar | None],
        tags: Mapping[str, str],
        datasets: Sequence[FeatureData],
    ) -> None:
        """Add what a run lacks, in one call if it is not much."""
        run_id = run.info.run_id
        texts = {name: str(value) for name, value in params.items() if name not in run.data.params}
        new = [Param(k, v) for k, v in _stored(texts, _MAX_PARAM).items()]
        changed = [RunTag(k, v) for k, v in _stored(tags, _MAX_TAG).items() if run.data.tags.get(k) != v]
        for start in range(0, max(len(new), len(changed)), _MAX_BATCH):
            part = slice(start, start + _MAX_BATCH)
            self._client.log_batch(run_id, params=new[part], tags=changed[part])
        run.data.params.update({param.key: param.value for param in new})
        run.data.tags.update({tag.key: tag.value for tag in changed})
        inputs = run.inputs.dataset_inputs if run.inputs is not None else []
        if datasets and not inputs:
            self._client.log_inputs(run_id, [dataset_input(data) for data in datasets])

    def _read_epochs(self, run_id: str) -> set[int]:
        """Return the epochs that a run has. The store is asked once, because there is no other writer."""
        if run_id not in self._logged_epochs:
            history = self._client.get_metric_history(run_id, EPOCH_SECONDS)
            self._logged_epochs[run_id] = {metric.step for metric in history}
        return self._logged_epochs[run_id]

    def _open_model(self, run_id: str) -> str:
        """Find or create the model of a run; a kill may have left one that the run does not name yet."""
        if run_id in self._models:
            return self._models[run_id]
        run = self._found[run_id]
        named = [output.model_id for output in run.outputs.model_outputs] if run.outputs is not None else []
        query = f"source_run_id = '{run_id}'"
        found = self._client.search_logged_models([self.experiment_id], query, max_results=1)
        if found:
            model = found[0]
        else:
            params = run.data.params
            model = self._client.create_logged_model(
                self.experiment_id, MODEL, run_id, params=params, model_type=params.get("task")
            )
        if model.model_id not in named:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._models[run_id] = str(model.model_id)
        return self._models[run_id]


def _check_key(key: str) -> None:
    if not re.fullmatch(r"[\w.-]+", key):
        raise ValueError(f"got key {key!r}, wanted letters, digits, `.`, `_` and `-` only")


def _stored(texts: Mapping[str, str], longest: int) -> dict[str, str]:
    """Return texts as the store takes them: not too long, and without passwords."""
    return {name: without_credentials(text)[:longest] for name, text in texts.items()}


def _now_milliseconds() -> int:
    return int(time.time() * 1000)
