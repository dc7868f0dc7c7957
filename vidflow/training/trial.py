"""One trial: build the module and its data from the configuration, train the module, and load the trained module."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidflow.config.schema import SplitNames, Trial
from vidflow.config.tasks import Objective, TaskName, facts_of
from vidflow.errors import VidflowError
from vidflow.models.tasks import Task, spec_of
from vidflow.records import EpochResult
from vidflow.spread import spread
from vidflow.store.features import FeatureReader
from vidflow.training.batches import Splits, core_tokens
from vidflow.training.fit import fit
from vidflow.training.learner import seeded
from vidflow.training.optim import Optimisation
from vidflow.training.recipe import ModuleRecipe, build_module, module_recipe
from vidflow.training.snapshot import BEST, TrialIdentity, load_result, read_tensors, write_failure, write_result

# Clips whose times give the frame rate of a feature set; more clips do not change the median.
_RATE_CLIPS = 256
# Enough for a mean and a deviation per channel to three digits.
_SCALE_CLIPS = 256


def run_trial(
    trial: Trial,
    reader: FeatureReader,
    *,
    directory: Path,
    key: str,
    objective: Objective,
    names: SplitNames | None = None,
    device: torch.device | str | None = None,
) -> Iterator[EpochResult]:
    """Train or resume a trial, and yield the result of every epoch that was not done before.

    See `vidflow.training.fit.fit`. Call `write_result` or `write_failure` to close a trial that ends early.

    Args:
        trial: Settings of the trial.
        reader: Its feature set.
        directory: Its folder.
        key: Fingerprint of everything that decides it.
        objective: Metric by which the best epoch is chosen.
        names: Which splits it uses; None: the usual ones.
        device: Where to train; None is the GPU if there is one.

    Raises:
        VidflowError: If the features do not fit the task, the module cannot be built, or the loss is not finite.
    """
    names = names or SplitNames()
    splits = Splits(
        reader=reader,
        train=_split_indices(reader, names.train, trial.task),
        val=_split_indices(reader, names.val, trial.task),
        test=_split_indices(reader, names.test, trial.task) if names.test else None,
    )
    recipe = module_recipe(trial, reader)
    try:
        with seeded(trial.seed, 0, torch.device("cpu")):
            task = build_module(recipe)
    except ValueError as error:
        raise VidflowError(f"trial {key}: {error}") from error
    if task.token_scale is not None:
        task.token_scale.measure(_train_tokens(splits, task))
    identity = TrialIdentity(
        key=key,
        settings=dataclasses.asdict(trial),
        recipe=dataclasses.asdict(recipe),
        num_parameters=sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad),
        features={**reader.metadata, "fps": _frame_rate(splits)},
    )
    yield from fit(
        task,
        spec_of(trial.task),
        splits,
        identity=identity,
        directory=directory,
        optimisation=Optimisation.of(trial),
        objective=objective,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )


def load_task(directory: Path, *, device: torch.device | str = "cpu") -> Task:
    """Rebuild the best module of a trial from `best.safetensors` alone, in eval mode.

    Raises:
        VidflowError: If the trial has no such file, or the file is damaged.
    """
    return load_trial(directory / BEST, device=device)[0]


def load_trial(path: Path, *, device: torch.device | str = "cpu") -> tuple[Task, TrialIdentity]:
    """Rebuild the module of a `best.safetensors` at any path, in eval mode, and return it with the trial's identity.

    Raises:
        VidflowError: If there is no such file, or it is damaged.
    """
    tensors, metadata = read_tensors(path)
    identity = TrialIdentity(**metadata["identity"])
    task = build_module(ModuleRecipe(**identity.recipe))
    task.load_state_dict(tensors)
    return task.to(device).eval(), identity


def _train_tokens(splits: Splits, task: Task) -> Iterator[Float[Tensor, "T K N D"]]:
    """Yield the tokens of some clips of the training split, evenly spread over it."""
    for index in splits.train[spread(len(splits.train), _SCALE_CLIPS)]:
        tokens = core_tokens(splits.reader[int(index)], task.num_depths, unmerged=task.unmerges)
        yield torch.from_numpy(tokens.astype(np.float32))


def _split_indices(reader: FeatureReader, split: str, task: TaskName) -> Int64[np.ndarray, " clips"]:
    """Return the clips of a split, as positions in the reader."""
    indices = np.flatnonzero(np.asarray(reader.splits) == split)
    if not len(indices):
        found = ", ".join(sorted(set(reader.splits))) or "none"
        raise VidflowError(
            f"{reader.directory}: no clip of split `{split}`; splits found: {found}; name one of them in trials.splits"
        )
    if facts_of(task).needs_labels and (unlabelled := [reader.keys[i] for i in indices if reader.labels[i] < 0]):
        raise VidflowError(
            f"{reader.directory}: {len(unlabelled)} clips of split `{split}` have no label, such as {unlabelled[0]}; "
            f"{task} wants one for each; fill in the manifest's column `label`"
        )
    return indices


def _frame_rate(splits: Splits) -> float | None:
    """Return the median frame rate of the training clips; None if every clip has a single frame time."""
    times = [splits.reader[int(index)].pts_seconds for index in splits.train[:_RATE_CLIPS]]
    rates = [(len(clip) - 1) / (clip[-1] - clip[0]) for clip in times if clip[-1] > clip[0]]
    return float(np.median(rates)) if rates else None


__all__ = ["load_result", "load_task", "load_trial", "run_trial", "write_failure", "write_result"]
