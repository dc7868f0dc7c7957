"""Write runs to MLflow, as its only importer. A sweep is a run, its trials are child runs, and one process writes all.

Every call may be repeated: a run is found by its key before one is created, and an epoch is logged once.
"""

import errno
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, cast

# MLflow reads these when it is imported or serves. The first keeps users' data private. The second avoids eight idle
# processes of 240 MB beside the UI, which are for jobs of language models.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from vidflow.config.schema import Scalar
from vidflow.config.tasks import TaskName
from vidflow.config.tracking_uri import check_uri, keep_credentials, sqlite_file, without_credentials
from vidflow.errors import ConfigError, VidflowError
from vidflow.files import file_sha256
from vidflow.records import EpochResult

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of an error that is also raised
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line per retry

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

SWEEP_KEY = "vidflow.sweep_key"
TRIAL_KEY = "vidflow.trial_key"
EPOCH_SECONDS = "epoch/seconds"
"""Logged with every epoch in one transaction, so the store holds an epoch if and only if it holds this at its step."""

_PARENT = "mlflow.parentRunId"
_MODEL_TAG = "vidflow.model_sha256"
_MODEL_FILE = "trial"
_MAX_BATCH = 100  # params or tags per call
_MAX_PARAM = 6000  # characters
_MAX_TAG = 8000  # characters
_MAX_DIGEST = 36  # characters
_MAX_CHILDREN = 50_000  # runs in one answer; MLflow allows no more
# What MLflow raises if a store cannot be used. If a sqlite file is damaged, that is an error of SQLAlchemy.
_FAILURES = (MlflowException, SQLAlchemyError, OSError)
# Source: "Database File Format", section 1.3, https://www.sqlite.org/fileformat.html.
_SQLITE_MAGIC = b"SQLite format 3\0"


def ui_command(uri: str, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Return the command that serves MLflow's UI over a sqlite store.

    MLflow answers only requests to localhost and to private addresses, so other web pages cannot read
    runs through the user's browser.

    Raises:
        ConfigError: If a server stores the runs (that server has the UI), or the store is damaged.
    """
    check_uri(uri, num_hosts=1)
    if not uri.startswith("sqlite:"):
        raise ConfigError(
            f"tracking.uri: runs are stored by {without_credentials(uri)}; open that address in a browser"
        )
    _check_sqlite(uri)
    store = ["--backend-store-uri", uri, "--artifacts-destination", str(_artifact_root(uri))]
    return [sys.executable, "-m", "mlflow", "server", *store, "--host", host, "--port", str(port), "--workers", "1"]


def ui_page(host: str = "127.0.0.1", port: int = 5000) -> str:
    """Return the address at which MLflow's UI lists experiments, in its view for model training."""
    return f"http://{host}:{port}/#/experiments?workflowType=machine_learning"


def check_store(uri: str) -> None:
    """Check with a small request that a store answers, before hours of work whose results it must store.

    Raises:
        ConfigError: If it gives no answer within seconds, or refuses.
    """
    if uri.startswith("sqlite:") and not sqlite_file(uri).exists():
        return
    _check_sqlite(uri)
    try:
        with _brief_retries():
            MlflowClient(uri).search_experiments(max_results=1)
    except _FAILURES as error:
        raise _store_error(uri, error) from error


def fetch_file(uri: str, run_id: str, artifact_path: str, folder: Path) -> Path:
    """Copy a file of a run into a local folder and return where it is.

    Args:
        uri: Address of the store, as `check_uri` allows.
        run_id: The run.
        artifact_path: The file's path within the run.
        folder: A folder that exists.

    Raises:
        VidflowError: If there is no such store, run or file.
    """
    uri = _readable_store(uri, run_id)
    try:
        with _brief_retries(), _silence_mlflow():
            return Path(MlflowClient(uri).download_artifacts(run_id, artifact_path, str(folder)))
    except _FAILURES as error:
        raise VidflowError(
            f"run {run_id}: cannot download {artifact_path} from {without_credentials(uri)}: {_reason(error)}"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRun:
    """The run of a trial below its sweep's run.

    Attributes:
        run_id: The run.
        name: Its name.
        task: The trial's task.
        values_of: Returns what the run holds of a metric: a value for every epoch.
    """

    run_id: str
    name: str
    task: TaskName
    values_of: Callable[[str], list[float]]


def find_children(uri: str, run_id: str) -> list[ChildRun] | None:
    """Return the trials of a sweep's run; None if the run is not that of a sweep.

    Args:
        uri: Address of the store, as `check_uri` allows.
        run_id: The run.

    Raises:
        VidflowError: If there is no such store or run.
    """
    uri = _readable_store(uri, run_id)
    try:
        with _brief_retries():
            client = MlflowClient(uri)
            run = client.get_run(run_id)
            if SWEEP_KEY not in run.data.tags:
                return None
            query = f"tags.`{_PARENT}` = '{run_id}'"
            found = client.search_runs([run.info.experiment_id], query, max_results=_MAX_CHILDREN)
    except _FAILURES as error:
        raise VidflowError(f"run {run_id}: cannot be read from {without_credentials(uri)}: {_reason(error)}") from error

    def values_of(child: str, metric: str) -> list[float]:
        return [measured.value for measured in client.get_metric_history(child, metric)]

    return [
        ChildRun(
            run_id=child.info.run_id,
            name=child.info.run_name,
            task=cast(TaskName, child.data.params["task"]),
            values_of=partial(values_of, child.info.run_id),
        )
        for child in found
        if TRIAL_KEY in child.data.tags
    ]


def _readable_store(uri: str, run_id: str) -> str:
    """Return the address of an existing store, without credentials.

    Raises:
        VidflowError: If there is no such store.
    """
    uri = keep_credentials(uri)
    check_uri(uri, num_hosts=1)
    if uri.startswith("sqlite:") and not sqlite_file(uri).exists():
        raise VidflowError(f"{sqlite_file(uri)}: no such file; name the MLflow store that holds run {run_id}")
    _check_sqlite(uri)
    return uri


def serve_model(build: Callable[[Path, dict[str, Any]], Callable[[Any], Any]]) -> None:
    """Turn the script that calls this into a model for MLflow, which runs the script instead of unpickling an object.

    Args:
        build: Takes the file that `Tracker.log_model` stored with the model, and the `model_config` given when
            loading; returns the function that answers `predict`.
    """
    import pandas as pd
    from mlflow.models import set_model
    from mlflow.pyfunc.model import PythonModel

    class Model(PythonModel):
        def load_context(self, context: Any) -> None:
            self._answer = build(Path(context.artifacts[_MODEL_FILE]), context.model_config or {})

        # MLflow warns of a missing or broad type hint. From this one it infers no schema, and lists arrive as lists.
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:  # noqa: ARG002
            return self._answer(model_input)

    set_model(Model())


class Tracker:
    """Writes sweeps and trials to one MLflow experiment. Only the driver has a tracker.

    Args:
        uri: Address of the store, as `check_uri` allows; a sqlite store is created at first use.
        experiment: Name of the experiment; created if there is none.

    Raises:
        ConfigError: If the store cannot be used.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        check_uri(uri, num_hosts=1)
        _check_sqlite(uri)
        try:
            with _brief_retries():
                if uri.startswith("sqlite:"):
                    _make_store(sqlite_file(uri))
                self._client = MlflowClient(uri)
                self._experiment_id = _find_or_create_experiment(self._client, uri, experiment)
        except (MlflowException, SQLAlchemyError) as error:
            raise _store_error(uri, error) from error
        self._logged_epochs: dict[str, set[int]] = {}

    def sweep_run(
        self,
        key: str,
        *,
        name: str,
        params: Mapping[str, Scalar | None],
        config_yaml: str,
        tags: Mapping[str, str] = MappingProxyType({}),
        datasets: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    ) -> str:
        """Find or create the run of a sweep.

        Args:
            key: The sweep's fingerprint, by which the run is found.
            name: Name of the run in the UI.
            params: Settings; params that the run already has are not changed.
            config_yaml: The merged configuration, stored as `config.yaml`.
            tags: Tags of the run; new values replace old ones.
            datasets: The inputs: name -> (fingerprint, place).

        Returns:
            Its run id.
        """
        run = self._find_or_create({SWEEP_KEY: key}, name)
        self._describe(run, params, tags, datasets)
        self.log_file(run.info.run_id, without_credentials(config_yaml).encode(), "config.yaml")
        return str(run.info.run_id)

    def trial_run(
        self,
        sweep_run_id: str,
        key: str,
        *,
        name: str,
        params: Mapping[str, Scalar | None],
        tags: Mapping[str, str] = MappingProxyType({}),
        datasets: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    ) -> str:
        """Find or create the run of a trial below its sweep; a failed or killed run is reopened.

        The arguments are those of `sweep_run`.
        """
        run = self._find_or_create({TRIAL_KEY: key, _PARENT: sweep_run_id}, name)
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

    def log_model(
        self, run_id: str, *, script: Path, file: Path, requirements: Sequence[str], settings: dict[str, Any]
    ) -> None:
        """Store a model for `mlflow.pyfunc.load_model("runs:/RUN_ID/model")`; do nothing if the run has it.

        Args:
            run_id: The run.
            script: Python file that calls `serve_model`; it is stored as text and run when the model is loaded.
            file: File that the model is made from, such as weights.
            requirements: Packages that the script needs, as pip takes them.
            settings: Keys that the `model_config` of `load_model` may set, with their defaults.
        """
        import mlflow.pyfunc  # slow to import, and most runs log no model

        digest = file_sha256(file)
        if self._client.get_run(run_id).data.tags.get(_MODEL_TAG) == digest:
            return
        with tempfile.TemporaryDirectory() as folder, _silence_mlflow():
            mlflow.pyfunc.save_model(
                str(Path(folder, "model")),
                python_model=str(script),
                artifacts={_MODEL_FILE: str(file)},
                pip_requirements=list(requirements),
                model_config=settings,
            )
            self._client.log_artifact(run_id, str(Path(folder, "model")))
        # Last, so that a kill before it means logging the model again.
        self._client.set_tag(run_id, _MODEL_TAG, digest)

    def finish(self, run_id: str, status: RunStatus, *, summary: Mapping[str, float] = MappingProxyType({})) -> None:
        """Close a run.

        Args:
            run_id: The run.
            status: How it ended.
            summary: Metrics of the whole run, such as `best/val/top1`; values that the run already has are skipped.
        """
        run = self._client.get_run(run_id)
        now = _now_milliseconds()
        news = [Metric(k, v, now, 0) for k, v in summary.items() if run.data.metrics.get(k) != v]
        if news:
            self._client.log_batch(run_id, metrics=news)
        if run.info.status != status:
            self._client.set_terminated(run_id, status)

    def _find_or_create(self, identity: Mapping[str, str], name: str) -> Run:
        """Return the run with these tags, created if there is none, and reopened if it failed or was killed."""
        if not all(re.fullmatch(r"[\w.-]+", value) for value in identity.values()):
            raise ValueError(f"got keys {dict(identity)}, wanted letters, digits, `.`, `_` and `-` only")
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items())
        found = self._client.search_runs([self._experiment_id], query, max_results=1, order_by=["start_time ASC"])
        if not found:
            return self._client.create_run(self._experiment_id, tags=dict(identity), run_name=without_credentials(name))
        run = found[0]
        if run.info.status in ("FAILED", "KILLED"):
            self._client.update_run(run.info.run_id, status="RUNNING")
        return run

    def _describe(
        self,
        run: Run,
        params: Mapping[str, Scalar | None],
        tags: Mapping[str, str],
        datasets: Mapping[str, tuple[str, str]],
    ) -> None:
        run_id = run.info.run_id
        new = [
            Param(k, without_credentials(str(v))[:_MAX_PARAM]) for k, v in params.items() if k not in run.data.params
        ]
        for start in range(0, len(new), _MAX_BATCH):
            self._client.log_batch(run_id, params=new[start : start + _MAX_BATCH])
        changed = [RunTag(k, without_credentials(v)[:_MAX_TAG]) for k, v in tags.items()]
        for start in range(0, len(changed), _MAX_BATCH):
            self._client.log_batch(run_id, tags=changed[start : start + _MAX_BATCH])
        if datasets:
            self._client.log_inputs(run_id, [_dataset_input(name, *where) for name, where in datasets.items()])

    def _read_epochs(self, run_id: str) -> set[int]:
        """Return the epochs that a run has. The store is asked once, because there is no other writer."""
        if run_id not in self._logged_epochs:
            history = self._client.get_metric_history(run_id, EPOCH_SECONDS)
            self._logged_epochs[run_id] = {metric.step for metric in history}
        return self._logged_epochs[run_id]


@contextmanager
def explain_failures(uri: str) -> Iterator[None]:
    """Turn failures of a store within the block, such as a full disk or a lost server, into one sentence.

    Raises:
        VidflowError: If the store fails.
        OSError: If the disk of a sqlite store is full.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        if uri.startswith("sqlite:") and "disk is full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(sqlite_file(uri))) from error
        raise VidflowError(
            f"the runs cannot be stored by {without_credentials(uri)}: {_reason(error)}; what is "
            "committed stays, and the same command resumes from here"
        ) from error


def _store_error(uri: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"tracking.uri: cannot use {without_credentials(uri)}: {_reason(error)}; start the server, or "
        "name another store"
    )


def _reason(error: Exception) -> str:
    """Return the message of a store's error on one line, without passwords."""
    return " ".join(without_credentials(str(error)).split())


def _check_sqlite(uri: str) -> None:
    """Check the first bytes of a sqlite store. With a damaged one MLflow retries for minutes and prints a traceback.

    Raises:
        ConfigError: If the file exists and is not a database.
    """
    if not uri.startswith("sqlite:") or not (file := sqlite_file(uri)).exists():
        return
    if not file.is_file():
        raise ConfigError(f"tracking.uri: {file} is a folder, pipe or device, wanted a sqlite file")
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise ConfigError(f"tracking.uri: {file} cannot be read ({error.strerror})") from error
    if start not in (b"", _SQLITE_MAGIC):
        raise ConfigError(
            f"tracking.uri: {file} is damaged or not a sqlite database; restore it from a copy, or move it away to "
            "start with an empty store"
        )


def _find_or_create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server has its own place for artifacts; with sqlite they would go to the current directory.
        location = _artifact_root(uri).as_uri() if uri.startswith("sqlite:") else None
        return str(client.create_experiment(name, location))
    if experiment.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment: {name!r} was deleted at {without_credentials(uri)}; "
            f"restore it (`mlflow experiments restore -x {experiment.experiment_id}`) or choose another name"
        )
    return str(experiment.experiment_id)


def _make_store(path: Path) -> None:
    """Create a sqlite store that appears complete or not at all.

    MLflow creates it by migrations that flush a thousand times (1 s of CPU, but 6 to 9 s on a busy
    disk). So it is created in a folder in memory, if the system has one, and then copied.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        made = Path(folder, path.name)
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            shutil.copyfile(made, staged)
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def _artifact_root(uri: str) -> Path:
    """Return the folder beside a sqlite store that holds its artifacts."""
    return sqlite_file(uri).parent / "mlartifacts"


def _dataset_input(name: str, fingerprint: str, place: str) -> DatasetInput:
    source = json.dumps({"uri": without_credentials(place)})
    return DatasetInput(Dataset(name=name, digest=fingerprint[:_MAX_DIGEST], source_type="local", source=source))


def _now_milliseconds() -> int:
    return int(time.time() * 1000)


@contextmanager
def _brief_retries() -> Iterator[None]:
    """Give up on a silent server after seconds. Outside the block MLflow's own limit of minutes applies."""
    brief = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    ours = {name: value for name, value in brief.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


@contextmanager
def _silence_mlflow() -> Iterator[None]:
    """Turn off MLflow's progress bars, and its warnings that our models have no schema."""
    name, logger = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", logging.getLogger("mlflow.pyfunc")
    bars, level = os.environ.get(name, "true"), logger.level
    os.environ[name] = "false"
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        os.environ[name] = bars
        logger.setLevel(level)
