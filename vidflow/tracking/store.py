"""Open, check, serve and read MLflow stores: a sqlite file, or a server."""

import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from vidflow.config.tracking_uri import check_uri, keep_credentials, sqlite_file, without_credentials
from vidflow.errors import ConfigError, VidflowError
from vidflow.tracking.models import MODEL
from vidflow.tracking.view import VIEW, VIEW_TAG

# What MLflow raises if a store cannot be used. If a sqlite file is damaged, that is an error of SQLAlchemy.
FAILURES = (MlflowException, SQLAlchemyError, OSError)
# Source: "Database File Format", section 1.3, https://www.sqlite.org/fileformat.html.
_SQLITE_MAGIC = b"SQLite format 3\0"
_REASON_CHARACTERS = 500
# What says why a server did not answer, in a message of MLflow that repeats the address four times.
_NO_ANSWER = re.compile(r"\[Errno -?\d+\] [\w ]+|Read timed out|Remote end closed connection without response")
_KIND_TAG = "mlflow.experimentKind"
_TRAINING = "custom_model_development"


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


def check_store(uri: str, experiment: str) -> None:
    """Check with a small request that a store answers, before hours of work whose results it must store.

    Raises:
        ConfigError: If it gives no answer within seconds, or refuses, or the experiment was deleted.
    """
    if uri.startswith("sqlite:") and not sqlite_file(uri).exists():
        return
    _check_sqlite(uri)
    try:
        with brief_retries(0, seconds=5):
            _read_experiment(MlflowClient(uri), uri, experiment)
    except FAILURES as error:
        raise _store_error(uri, error) from error


def readable_store(uri: str, run_id: str) -> str:
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


def fetch_file(uri: str, run_id: str, artifact_path: str, folder: Path) -> Path:
    """Copy a file of a run into a local folder and return where it is.

    Args:
        uri: Address of the store, as `check_uri` allows.
        run_id: The run.
        artifact_path: The file's path within the run; `model/` is the run's model.
        folder: A folder that exists.

    Raises:
        VidflowError: If there is no such store, run or file.
    """
    uri = readable_store(uri, run_id)
    try:
        with brief_retries(), silence_mlflow():
            return Path(_download(MlflowClient(uri), uri, run_id, artifact_path, folder))
    except FAILURES as error:
        raise VidflowError(
            f"run {run_id}: cannot download {artifact_path} from {without_credentials(uri)}: {reason(error)}"
        ) from error


def _download(client: MlflowClient, uri: str, run_id: str, artifact_path: str, folder: Path) -> str:
    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs is not None else []
    if not models or not artifact_path.startswith(f"{MODEL}/"):
        return str(client.download_artifacts(run_id, artifact_path, str(folder)))
    # MLflow looks for a run's model in the default store only, so the place of the model is looked up here.
    place = client.get_logged_model(models[-1].model_id).artifact_location
    source = place + artifact_path.removeprefix(MODEL)
    return str(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))


def _store_error(uri: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"tracking.uri: cannot use {without_credentials(uri)}: {reason(error)}; start the server, or name another store"
    )


def reason(error: Exception) -> str:
    """Return the message of a store's error on one line, without passwords."""
    text = " ".join(without_credentials(str(error)).split())
    cause = _NO_ANSWER.search(text) if text.startswith("API request to ") else None
    # A database's error goes on with the statement and all its values.
    return f"no answer: {cause[0]}" if cause is not None else text.partition(" [SQL: ")[0][:_REASON_CHARACTERS]


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


def open_experiment(uri: str, name: str) -> tuple[MlflowClient, str]:
    """Open an experiment for writing, and create it, and a sqlite store, if there is none; return its id too.

    Raises:
        ConfigError: If the store is damaged, or the experiment was deleted; other failures are those of MLflow.
    """
    check_uri(uri, num_hosts=1)
    _check_sqlite(uri)
    if uri.startswith("sqlite:"):
        _make_store(sqlite_file(uri))
    client = MlflowClient(uri)
    experiment = _read_experiment(client, uri, name)
    if experiment is not None:
        return client, str(experiment.experiment_id)
    # A server has its own place for artifacts; with sqlite they would go to the current directory.
    location = _artifact_root(uri).as_uri() if uri.startswith("sqlite:") else None
    return client, str(client.create_experiment(name, location, {_KIND_TAG: _TRAINING}))


def find_page(uri: str, name: str, server: str) -> str | None:
    """Return the address at which MLflow's UI shows the runs of an experiment; None if it has no runs yet.

    Args:
        uri: Address of the store.
        name: Name of the experiment.
        server: Address of the server that has the UI, such as `http://127.0.0.1:5000`.

    Raises:
        ConfigError: If the store cannot be used, or the experiment was deleted.
    """
    check_store(uri, name)
    if uri.startswith("sqlite:") and not sqlite_file(uri).exists():
        return None
    experiment = _read_experiment(MlflowClient(uri), uri, name)
    if experiment is None:
        return None
    page = f"{server}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    # MLflow complains of a view that it does not know, which an older vidflow did not make.
    return f"{page}&viewStateShareKey={VIEW}" if VIEW_TAG in experiment.tags else page


def _read_experiment(client: MlflowClient, uri: str, name: str) -> Experiment | None:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment: {name!r} was deleted at {without_credentials(uri)}; "
            f"restore it (`mlflow experiments restore -x {experiment.experiment_id}`) or choose another name"
        )
    return experiment


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


@contextmanager
def brief_retries(number: int = 2, *, seconds: int = 10) -> Iterator[None]:
    """Give up on a silent server soon. Outside the block MLflow's own limit of minutes applies.

    Args:
        number: How often MLflow tries again by itself.
        seconds: How long it waits for an answer.
    """
    brief = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(number), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    ours = {name: value for name, value in brief.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


@contextmanager
def silence_mlflow() -> Iterator[None]:
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
