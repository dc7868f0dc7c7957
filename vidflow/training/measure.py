"""Measure a finished trial on a split of any features that its encoder made, such as those of another manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidflow.config.schema import Trial
from vidflow.errors import VidflowError
from vidflow.models.tasks import spec_of
from vidflow.store.features import FeatureReader
from vidflow.training.batches import iterate_batches
from vidflow.training.labels import check_labelled
from vidflow.training.optim import autocast
from vidflow.training.trained_task import load_trial
from vidflow.training.votes import Count, videos_of

# What may differ between the features of a trial and those that it is measured on.
_FREE = ("weights", "timm", "torch", "transformers")


def measure_trial(
    path: Path,
    reader: FeatureReader,
    split: str,
    *,
    by_video: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], int]:
    """Return the metrics of a trial's task, with the names of its metric, and the number of clips.

    Args:
        path: The trial's `best.safetensors`.
        reader: Features of the clips.
        split: Split of these features.
        by_video: Whether the metric counts videos, not clips.
        device: Where the module runs.

    Raises:
        VidflowError: The features are of another encoder or of other clips, a label is no class of the trial, or the
            split has nothing that the metric counts, or clips without a label.
    """
    task, identity = load_trial(path, device=device)
    _check_features(identity.features, reader)
    settings: dict[str, Any] = dict(identity.settings)
    trial = Trial(**settings)
    spec, target = spec_of(trial.task), torch.device(device)
    indices = np.flatnonzero(np.asarray(reader.splits) == split)
    if not len(indices):
        found = ", ".join(sorted(set(reader.splits))) or "none"
        raise VidflowError(f"{reader.directory}: no clip of split {split!r}; splits found: {found}")
    check_labelled(reader, indices, trial.task)
    classes = _class_map(reader.metadata["class_names"], identity.features["class_names"], reader, indices)
    counted = Count(spec.build_metric(), videos_of(reader, indices) if by_video else None)
    batches = iterate_batches(
        reader,
        indices,
        batch_size=trial.batch_size,
        device=target,
        num_depths=task.num_depths,
        arrays=spec.facts.annotations,
        unmerged=task.unmerges,
    )
    with torch.inference_mode():
        for batch in batches:
            with autocast(target, trial.precision):
                predictions = task(batch.tokens, batch.prefix, task.queries_of(batch.targets))
            targets = _relabelled(batch.targets, classes if spec.facts.needs_labels else None)
            counted.add(batch.indices.tolist(), predictions, targets)
    try:
        return counted.compute(), len(indices)
    except ValueError as error:
        raise VidflowError(f"split {split!r} cannot be measured: {error}") from error


def _check_features(trained: Mapping[str, Any], reader: FeatureReader) -> None:
    ours, found = trained.get("encoder", {}), reader.metadata["encoder"]
    differing = [name for name in ours if name not in _FREE and ours[name] != found.get(name)]
    differing += ["clip"] if trained.get("clip") != reader.metadata.get("clip") else []
    if differing:
        raise VidflowError(
            f"{reader.directory}: features differ from those of the trial in {', '.join(differing)}; extract the "
            "videos with the trial's own encoder and video settings"
        )


def _class_map(
    names: Sequence[str], known: Sequence[str], reader: FeatureReader, indices: "np.ndarray[Any, Any]"
) -> Tensor:
    """Return the trial's class of every label of these features; -1 for those that no clip has."""
    used = {names[reader.labels[int(index)]] for index in indices if reader.labels[int(index)] >= 0}
    if missing := sorted(used - set(known)):
        raise VidflowError(
            f"{len(missing)} labels are no class of the trial, such as {missing[0]!r}; it knows {', '.join(known)}"
        )
    return torch.tensor([known.index(name) if name in known else -1 for name in names] or [-1])


def _relabelled(targets: Mapping[str, Tensor], classes: Tensor | None) -> dict[str, Tensor]:
    if classes is None or "label" not in targets:
        return dict(targets)
    return {**targets, "label": classes.to(targets["label"].device)[targets["label"]]}


__all__ = ["measure_trial"]
