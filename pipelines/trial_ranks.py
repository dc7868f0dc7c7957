"""Several processes that train one trial: Ray Train within a trial of Ray Tune.

The trial's own process takes no CPU. It starts the processes and passes on what they report. If one of them dies or
fails, Ray Train ends all, and Ray Tune tries the trial again from its snapshot.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.placement import Placement
from vidflow.errors import VidflowError


def train_together(
    train: Callable[[dict[str, Any]], None], values: dict[str, Any], placement: Placement, storage: Path
) -> None:
    """Run a function in all processes of a trial, joined by torch's process group.

    Args:
        train: The function. In every process it calls `ray.train.report` once an epoch; what the first process reports
            is reported to Tune.
        values: What the function gets.
        placement: What each process takes.
        storage: Folder for Ray Train's own files.

    Raises:
        VidflowError: If a process has raised it.
        ChildProcessError: If a process has died.
    """
    trainer = TorchTrainer(
        train,
        train_loop_config=values,
        # One group for both: what is shared and gathered lies on the host.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if placement.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=placement.processes,
            use_gpu=placement.num_gpus > 0,
            resources_per_worker={"CPU": placement.num_cpus, "GPU": placement.num_gpus},
        ),
        run_config=RunConfig(
            storage_path=str(storage),
            name=f"processes-{secrets.token_hex(8)}",
            callbacks=[TuneReportCallback()],
            logging_config=LoggingConfig("CRITICAL"),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise _cause(error.worker_failures, placement.processes) from error


def _cause(failures: dict[int, Exception], number: int) -> Exception:
    """Return the error that explains the others: when one process ends, the others fail as they wait for it.

    Args:
        failures: Number of a process, from 0 -> its error.
        number: Number of all processes.
    """
    rank, error = min(failures.items(), key=lambda each: _order(each[1]))
    if isinstance(error, WorkerHealthCheckFailedError):
        return ChildProcessError(f"process {rank + 1} of {number} died (killed, or out of memory)")
    return error


def _order(error: Exception) -> int:
    # Torch raises a RuntimeError in a process that waits for another.
    kinds = (VidflowError, WorkerHealthCheckFailedError, RuntimeError)
    return next((place for place, kind in enumerate(kinds) if isinstance(error, kind)), 1)


__all__ = ["train_together"]
