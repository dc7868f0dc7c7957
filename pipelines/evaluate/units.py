"""The units of an evaluation: one point on one shard, done by a pool of workers."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pipelines.ray_pool import commit_units
from vidflow.config.schema import Config
from vidflow.stages.address import Address
from vidflow.stages.evaluation.models import FOLDER
from vidflow.stages.evaluation.points import Point
from vidflow.stages.evaluation.worker import Answer, EvaluateUnit, Evaluator, ModelSetup
from vidflow.stages.experiment import Experiment
from vidflow.store.layout import FileEntry, remove_leftovers


def evaluate_units(
    config: Config,
    setups: Mapping[str, ModelSetup],
    units: Sequence[EvaluateUnit],
    *,
    split: str,
    answer: Answer | None = None,
) -> list[FileEntry]:
    """Make the files that are missing, or that were made from other shards; return the entries of all units.

    Args:
        config: The experiment.
        setups: Models by name.
        units: What to do, model by model, so that a worker builds each model once.
        split: Split whose clips are evaluated.
        answer: What is stored of a batch; None is the logits.
    """
    directory = Path(config.root) / FOLDER
    for folder in dict.fromkeys(unit.file.split("/")[0] for unit in units):
        remove_leftovers(directory / folder)
    entries, _ = commit_units(
        config,
        directory,
        functools.partial(build_evaluator, config, dict(setups), split, answer),
        units,
        config.resources.extract,
        name="evaluate",
        is_current=lambda unit, entry: entry.details.get("source") == unit.source_sha256,
    )
    return entries


def units_of(shards: Experiment, point: Point, address: Address) -> list[EvaluateUnit]:
    """Return a unit of a point for every shard."""
    where = shards.finished_shards.address
    return [
        EvaluateUnit(
            file=f"{address.directory.name}/{Path(row['file']).stem}.npz",
            point=point,
            shards=where.directory,
            shard=row["file"],
            source_sha256=row["sha256"],
        )
        for row in shards.finished(where).files
    ]


def build_evaluator(config: Config, setups: Mapping[str, ModelSetup], split: str, answer: Answer | None) -> Evaluator:
    """Build the worker on the machine where it runs."""
    # What warns of settings was said by the driver.
    logging.getLogger("vidflow").setLevel(logging.ERROR)
    resources = config.resources.extract
    num_threads = max(1, int(resources.num_cpus))
    torch.set_num_threads(num_threads)
    return Evaluator(
        setups,
        directory=Path(config.root) / FOLDER,
        split=split,
        device="cuda" if resources.num_gpus else "cpu",
        dtype=config.evaluate.dtype,
        clips_per_batch=config.evaluate.clips_per_batch,
        answer=answer,
        num_decompressors=num_threads if resources.num_gpus else 1,
    )


def resolved_dtype(config: Config) -> str:
    """Return the number format in which models run on the workers."""
    if config.evaluate.dtype != "auto":
        return config.evaluate.dtype
    return "bfloat16" if config.resources.extract.num_gpus else "float32"


__all__ = ["evaluate_units", "resolved_dtype", "units_of"]
