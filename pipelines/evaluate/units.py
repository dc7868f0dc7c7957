"""The units of an evaluation: one point on one shard, done by a pool of workers."""

import functools
import logging
from collections.abc import Mapping, Sequence

import torch

from pipelines.commit import commit_units
from pipelines.placement import Placement, usable_device
from pipelines.ray_session import place
from vidflow.config.roots import root_path
from vidflow.config.schema import Config
from vidflow.stages.evaluation.models import FOLDER
from vidflow.stages.evaluation.worker import Answer, EvaluateUnit, Evaluator, ModelSetup
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
        config: The experiment; Ray must have started.
        setups: Models by name.
        units: What to do, model by model, so that a worker builds each model once.
        split: Split whose clips are evaluated.
        answer: What is stored of a batch; None is the logits.
    """
    directory, placement = root_path(config) / FOLDER, place(config, "extract")
    for folder in dict.fromkeys(unit.file.split("/")[0] for unit in units):
        remove_leftovers(directory / folder)
    entries, _ = commit_units(
        directory,
        functools.partial(build_evaluator, config, dict(setups), split, answer, placement),
        units,
        placement,
        name="evaluate",
        num_clips=lambda unit: unit.num_clips,
        is_current=lambda unit, entry: entry.details.get("source") == unit.source_sha256,
    )
    return entries


def build_evaluator(
    config: Config,
    setups: Mapping[str, ModelSetup],
    split: str,
    answer: Answer | None,
    placement: Placement,
) -> Evaluator:
    """Build the worker on the machine where it runs."""
    # What warns of settings was said by the driver.
    logging.getLogger("vidflow").setLevel(logging.ERROR)
    num_threads = max(1, int(placement.num_cpus))
    torch.set_num_threads(num_threads)
    return Evaluator(
        setups,
        directory=root_path(config) / FOLDER,
        split=split,
        device=usable_device(placement),
        dtype=config.evaluate.dtype,
        clips_per_batch=config.evaluate.clips_per_batch,
        answer=answer,
        # A model on the CPU already uses all cores.
        num_decompressors=num_threads if placement.device == "cuda" else 1,
    )


def resolved_dtype(config: Config) -> str:
    """Return the number format in which models run on the workers; Ray must have started."""
    if config.evaluate.dtype != "auto":
        return config.evaluate.dtype
    return "bfloat16" if place(config, "extract").device == "cuda" else "float32"


__all__ = ["evaluate_units", "resolved_dtype"]
