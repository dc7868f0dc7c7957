"""Read the trials of a sweep's run, to find the best of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from mlflow import MlflowClient

from vidflow.config.tasks import TaskName
from vidflow.config.tracking_uri import without_credentials
from vidflow.errors import VidflowError
from vidflow.tracking.runs import PARENT, SWEEP_KEY, TRIAL_KEY
from vidflow.tracking.store import FAILURES, brief_retries, readable_store, reason

_MAX_CHILDREN = 50_000  # runs in one answer; MLflow allows no more


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
    """Return the finished trials of a sweep's run, without those that failed; None if the run is not that of a sweep.

    Args:
        uri: Address of the store, as `check_uri` allows.
        run_id: The run.

    Raises:
        VidflowError: If there is no such store or run.
    """
    uri = readable_store(uri, run_id)
    try:
        with brief_retries():
            client = MlflowClient(uri)
            run = client.get_run(run_id)
            if SWEEP_KEY not in run.data.tags:
                return None
            query = f"tags.`{PARENT}` = '{run_id}'"
            found = client.search_runs([run.info.experiment_id], query, max_results=_MAX_CHILDREN)
    except FAILURES as error:
        raise VidflowError(f"run {run_id}: cannot be read from {without_credentials(uri)}: {reason(error)}") from error

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
        if TRIAL_KEY in child.data.tags and child.info.status == "FINISHED"
    ]


__all__ = ["ChildRun", "find_children"]
