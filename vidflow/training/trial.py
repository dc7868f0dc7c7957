"""One trial from its configuration: builds the module and its data, trains it, and rebuilds what was trained."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidflow.config.schema import CoreName, TaskName, Trial
from vidflow.errors import VidflowError
from vidflow.models.cores.build import build_core
from vidflow.models.tasks import Task, build_task
from vidflow.models.tasks.metrics import build_metric
from vidflow.models.tasks.token_scale import TokenScale
from vidflow.records import EpochResult
from vidflow.store.features import FeatureReader
from vidflow.training.batches import core_tokens, read_annotations, spread
from vidflow.training.fit import fit
from vidflow.training.learner import seeded
from vidflow.training.snapshot import BEST, TrialIdentity, load_result, read_tensors, write_failure, write_result

# Clips whose times tell at which rate a feature set was sampled; their median does not change with more.
_RATE_CLIPS = 256
# Enough for a mean and a deviation per channel to three digits.
_SCALE_CLIPS = 256


def run_trial(
    trial: Trial,
    reader: FeatureReader,
    *,
    directory: Path,
    key: str,
    objective: str,
    mode: Literal["max", "min"],
    device: torch.device | str | None = None,
) -> Iterator[EpochResult]:
    """Train a trial, or go on with it, and yield the result of every epoch that was not done before.

    See `vidflow.training.fit.fit`. A trial that ends early is closed by `write_result` or `write_failure`.

    Args:
        trial: Settings of the trial.
        reader: Its feature set.
        directory: Its folder.
        key: Fingerprint of everything that decides it.
        objective: Metric by which an epoch is the best, such as `val/top1`.
        mode: Whether more of it is better.
        device: Where to train; None is the GPU if there is one.

    Raises:
        VidflowError: If the features do not fit the task, the module cannot be built, or the loss is not finite.
    """
    train_indices = _split_indices(reader, "train", trial.task)
    val_indices = _split_indices(reader, "val", trial.task)
    recipe = module_recipe(trial, reader)
    try:
        with seeded(trial.seed, 0, torch.device("cpu")):
            task = build_module(**recipe)
    except ValueError as error:
        raise VidflowError(f"trial {key}: {error}") from error
    if task.token_scale is not None:
        task.token_scale.measure(_train_tokens(reader, train_indices, task))
    identity = TrialIdentity(
        key=key,
        settings=dataclasses.asdict(trial),
        recipe=recipe,
        num_parameters=sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad),
        features={**reader.metadata, "fps": _frame_rate(reader, train_indices)},
    )
    yield from fit(
        task,
        identity=identity,
        reader=reader,
        directory=directory,
        train_indices=train_indices,
        val_indices=val_indices,
        arrays=annotations_of(trial.task),
        build_metric=lambda: build_metric(trial.task),
        epochs=trial.epochs,
        batch_size=trial.batch_size,
        learning_rate=trial.learning_rate,
        weight_decay=trial.weight_decay,
        warmup_fraction=trial.warmup_fraction,
        grad_clip=trial.grad_clip,
        precision=trial.precision,
        objective=objective,
        mode=mode,
        seed=trial.seed,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )


def load_task(directory: Path, *, device: torch.device | str = "cpu") -> Task:
    """Rebuild the best module of a trial from `best.safetensors` alone, in eval mode.

    Raises:
        VidflowError: If the trial has none, or the file is damaged.
    """
    return load_trial(directory / BEST, device=device)[0]


def load_trial(path: Path, *, device: torch.device | str = "cpu") -> tuple[Task, TrialIdentity]:
    """Rebuild the module of one `best.safetensors`, wherever it lies, in eval mode, and say which trial it is.

    Raises:
        VidflowError: If there is no such file, or it is damaged.
    """
    tensors, metadata = read_tensors(path)
    identity = TrialIdentity(**metadata["identity"])
    task = build_module(**identity.recipe)
    task.load_state_dict(tensors)
    return task.to(device).eval(), identity


def module_recipe(trial: Trial, reader: FeatureReader) -> dict[str, Any]:
    """Return the keyword arguments of `build_module` for a trial on these features, as JSON values."""
    metadata = reader.metadata
    return {
        "task": trial.task,
        "core": trial.core,
        "embed_dim": metadata["embed_dim"],
        "num_layers": trial.num_layers,
        "num_heads": trial.num_heads,
        "num_depths": len(metadata["depths"]) if trial.mix_depths else 1,
        "num_classes": len(metadata["class_names"]) if trial.task == "classification" else None,
        "image_size": _depth_size(reader) if trial.task == "depth" else 0,
        "readout_dim": trial.readout_dim,
        "readout_heads": trial.readout_heads,
        "every_frame_weight": trial.every_frame_weight,
        "standardize": trial.standardize,
        "unmerge": trial.unmerge,
    }


def build_module(
    *,
    task: TaskName,
    core: CoreName,
    embed_dim: int,
    num_layers: int,
    num_heads: int | None,
    num_depths: int,
    num_classes: int | None,
    image_size: int,
    readout_dim: int,
    readout_heads: int,
    every_frame_weight: float,
    standardize: bool = False,
    unmerge: bool = True,
) -> Task:
    """Build the module that a trial trains: depth mixing, core and readout.

    Args:
        task: What is learnt.
        core: Temporal core.
        embed_dim: Width of the tokens.
        num_layers: Layers of the core.
        num_heads: Attention heads of the core; None is the published number for the width.
        num_depths: Tapped depths that are mixed; 1 reads the last one alone.
        num_classes: Classes, for `classification`.
        image_size: Side of the depth maps in pixels, for `depth`; else 0.
        readout_dim: Width of the readout.
        readout_heads: Attention heads of the readout.
        every_frame_weight: Weight of the loss at every frame beside that at the last one, for `classification`.
        standardize: Whether tokens pass a `TokenScale`, which is still to be measured or loaded, and what the head of
            `camera_pose` reads passes batch norm.
        unmerge: Whether reduced tokens are put back on the full grid of patches.

    Raises:
        ValueError: If widths and heads do not fit.
    """
    built = build_task(
        task,
        core=build_core(core, embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads),
        embed_dim=embed_dim,
        num_depths=num_depths,
        num_classes=num_classes,
        image_size=image_size,
        readout_width=readout_dim,
        readout_heads=readout_heads,
        frame_loss_weight=every_frame_weight,
        standardize=standardize,
    )
    built.token_scale = TokenScale(num_depths, embed_dim) if standardize else None
    built.unmerges = unmerge
    return built


def annotations_of(task: TaskName) -> tuple[str, ...]:
    """Return the annotations that a task is trained on, besides the label."""
    match task:
        case "classification":
            return ()
        case "box_tracking":
            return "boxes", "boxes_visible"
        case "point_tracking":
            return "points", "points_visible", "query_frames"
        case "depth":
            return ("depth",)
        case "camera_pose":
            return ("camera_motion",)
        case _:
            assert_never(task)


def _train_tokens(
    reader: FeatureReader, train_indices: Int64[np.ndarray, " clips"], task: Task
) -> Iterator[Float[Tensor, "T K N D"]]:
    """Yield the tokens of some clips of the training split, spread over it evenly."""
    for index in spread(train_indices, most=_SCALE_CLIPS):
        tokens = core_tokens(reader[int(index)], task.num_depths, unmerged=task.unmerges)
        yield torch.from_numpy(tokens.astype(np.float32))


def _split_indices(reader: FeatureReader, split: str, task: TaskName) -> Int64[np.ndarray, " clips"]:
    """Return the clips of a split, as positions in the reader."""
    indices = np.flatnonzero(np.asarray(reader.splits) == split)
    if not len(indices):
        found = ", ".join(sorted(set(reader.splits))) or "none"
        raise VidflowError(
            f"{reader.directory}: no clip of split `{split}`; splits found: {found}; name it in the manifest"
        )
    if task == "classification" and (unlabelled := [reader.keys[i] for i in indices if reader.labels[i] < 0]):
        raise VidflowError(
            f"{reader.directory}: {len(unlabelled)} clips of split `{split}` have no label, such as {unlabelled[0]}; "
            "classification wants one for each; fill in the manifest's column `label`"
        )
    return indices


def _frame_rate(reader: FeatureReader, indices: Int64[np.ndarray, " clips"]) -> float | None:
    """Return the usual number of frames per second of the clips; None where each has a single moment."""
    times = [reader[int(index)].pts_seconds for index in indices[:_RATE_CLIPS]]
    rates = [(len(clip) - 1) / (clip[-1] - clip[0]) for clip in times if clip[-1] > clip[0]]
    return float(np.median(rates)) if rates else None


def _depth_size(reader: FeatureReader) -> int:
    """Return the side of the depth maps in pixels, as the first clip has it."""
    return int(read_annotations(reader[0], ["depth"])["depth"].shape[-1])


__all__ = [
    "annotations_of",
    "build_module",
    "load_result",
    "load_task",
    "load_trial",
    "module_recipe",
    "run_trial",
    "write_failure",
    "write_result",
]
