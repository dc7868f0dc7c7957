"""MLflow, whose only importer this package is. A sweep is a run, its trials are child runs, and one process writes all.

`tracker` says what happens to runs, as `records` in a journal; `delivery` brings them to the store, where `runs` writes
them. `store` opens, checks and serves stores; `models` and `datasets` make what runs refer to; `view` is what the UI
shows first.
"""

import logging
import os

# MLflow reads these when it is imported or serves. The first keeps users' data private. The second avoids eight idle
# processes of 240 MB beside the UI, which are for jobs of language models.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line per run

from vidflow.tracking.children import ChildRun, find_children
from vidflow.tracking.datasets import FeatureData
from vidflow.tracking.models import MODEL, ModelCode, ModelColumns, serve_model
from vidflow.tracking.records import name_run, page_of
from vidflow.tracking.runs import EPOCH_SECONDS, SWEEP_KEY, TRIAL_KEY
from vidflow.tracking.store import check_store, fetch_file, find_page, ui_command
from vidflow.tracking.tracker import SweepIds, Tracker, name_store
from vidflow.tracking.view import RunsView

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of an error that is also raised
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line per retry

__all__ = [
    "EPOCH_SECONDS",
    "MODEL",
    "SWEEP_KEY",
    "TRIAL_KEY",
    "ChildRun",
    "FeatureData",
    "ModelCode",
    "ModelColumns",
    "RunsView",
    "SweepIds",
    "Tracker",
    "check_store",
    "fetch_file",
    "find_children",
    "find_page",
    "name_run",
    "name_store",
    "page_of",
    "serve_model",
    "ui_command",
]
