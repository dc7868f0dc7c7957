"""Rebuild what a trial trained, from its `best.safetensors`."""

from pathlib import Path

import torch

from vidflow.config.tasks import facts_of
from vidflow.errors import VidflowError
from vidflow.models.tasks import Task
from vidflow.training.encoded_task import EncodedTask, task_weights
from vidflow.training.encoding import EncoderPart, build_encoded
from vidflow.training.recipe import ModuleRecipe, build_module
from vidflow.training.snapshot import BEST, TrialIdentity, read_tensors


def load_task(directory: Path, *, device: torch.device | str = "cpu") -> Task:
    """Rebuild the best module of a trial from `best.safetensors` alone, in eval mode.

    Raises:
        VidflowError: If the trial has no such file, or the file is damaged.
    """
    return load_trial(directory / BEST, device=device)[0]


def load_trial(path: Path, *, device: torch.device | str = "cpu") -> tuple[Task, TrialIdentity]:
    """Rebuild the task of a `best.safetensors` at any path, in eval mode, and return it with the trial's identity.

    Raises:
        VidflowError: If there is no such file, it is damaged, its task fits the encoder that the trial adapted only, or
            predicts hidden tokens.
    """
    task, identity = load_adapted_task(path, device=device)
    if facts_of(identity.recipe["task"]).predicts == "tokens":
        raise VidflowError(
            f"{path}: this trial only trains a core, and has no answer about a video; start other trials from it: "
            f"trials.trial.init_from={path.parent}"
        )
    if (identity.encoder or {}).get("adaptation") is not None:
        raise VidflowError(
            f"{path}: this trial adapted its encoder, so its task cannot run behind the stock one; merge with "
            f"`vidflow merge-adapters {path.parent} --to FILE`, extract with encoder.weights=FILE, and train on that"
        )
    return task, identity


def is_adapted(path: Path) -> bool:
    """Whether the trial of a `best.safetensors` has adapted its encoder.

    Raises:
        VidflowError: If there is no such file, or it is damaged.
    """
    return (read_tensors(path)[1]["identity"].get("encoder") or {}).get("adaptation") is not None


def load_adapted_task(path: Path, *, device: torch.device | str = "cpu") -> tuple[Task, TrialIdentity]:
    """Do as `load_trial`, also for a task that fits the encoder that the trial adapted only.

    Raises:
        VidflowError: If there is no such file, or it is damaged.
    """
    tensors, metadata = read_tensors(path)
    identity = TrialIdentity(**metadata["identity"])
    task = build_module(ModuleRecipe(**identity.recipe))
    task.load_state_dict(task_weights(tensors) if identity.encoder else tensors)
    return task.to(device).eval(), identity


def load_encoded(path: Path, *, device: torch.device | str = "cpu") -> tuple[EncodedTask, TrialIdentity]:
    """Rebuild the encoder and the task of a trial in which the encoder ran, in eval mode.

    Raises:
        VidflowError: If there is no such file, it is damaged, no encoder ran in its trial, or the encoder's frozen
            weights are not those of the trial.
    """
    tensors, metadata = read_tensors(path)
    identity = TrialIdentity(**metadata["identity"])
    if not identity.encoder:
        raise VidflowError(f"{path}: a trial on stored features, in which no encoder ran")
    module = build_encoded(
        EncoderPart.of(identity.encoder), build_module(ModuleRecipe(**identity.recipe)), device=device
    )
    module.load_state_dict(tensors)
    return module.to(device).eval(), identity


__all__ = ["is_adapted", "load_adapted_task", "load_encoded", "load_task", "load_trial"]
