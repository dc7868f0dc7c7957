"""Fit the last layer of every model before it is evaluated: `evaluate.fit_head`."""

from pathlib import Path

import numpy as np

from pipelines.evaluate.clips import ModelClips
from pipelines.evaluate.units import evaluate_units, resolved_dtype
from pipelines.ray_pool import log
from vidflow.config.fingerprints import fingerprint
from vidflow.config.schema import Config
from vidflow.errors import VidflowError
from vidflow.models.encoder.video import build_video_classifier
from vidflow.stages.evaluation.files import read_logits
from vidflow.stages.evaluation.head import INPUTS, fit_head, last_inputs, last_layer, save_with_head
from vidflow.stages.evaluation.models import FOLDER, ReadyModel, locate_point, ready_model, with_weights
from vidflow.stages.evaluation.points import Point
from vidflow.stages.experiment import Experiment

_FOLDER = "heads"
# Increase it when a change of the code fits another layer.
_VERSION = 1


def fit_heads(experiment: Experiment, labels: list[str], split: str) -> Config:
    """Return the experiment with the weights of every model replaced by those with the fitted layer.

    Args:
        experiment: The experiment.
        labels: The classes, sorted.
        split: Split on which the layer is fitted.

    Raises:
        VidflowError: If a model has no layer that can be replaced, or the split has no clip.
    """
    config = experiment.config
    for name in config.evaluate.models:
        model = ready_model(experiment.config, name, labels)
        clips = ModelClips(experiment, model, split)
        with experiment.exclusive():
            folder = _make_folder(experiment, model, clips, split)
        config = with_weights(config, name, folder, model.outline.geometry.fps)
    return config


def _make_folder(experiment: Experiment, model: ReadyModel, clips: ModelClips, split: str) -> Path:
    config, point = experiment.config, Point(model=model.name)
    shards = clips.shards[clips.plainest].finished_shards.address
    address = locate_point(config, model, point, shards, resolved_dtype(config), split=split, answer=INPUTS)
    folder = experiment.root / _FOLDER / fingerprint([_VERSION, address.fingerprint, clips.label_names])
    if folder.is_dir():
        log.info("evaluate: %s, last layer is there already: %s", model.name, folder)
        return folder
    # Built first, so that a model without such a layer is refused before its clips are read.
    classifier = build_video_classifier(model.setup.recipe, dtype="float32", class_names=model.setup.class_names)
    last_layer(classifier)
    units = clips.units(clips.plainest, point, address)
    entries = evaluate_units(config, {model.name: model.setup}, units, split=split, answer=last_inputs)
    files = [read_logits(experiment.root / FOLDER / entry.file, entry.sha256) for entry in entries]
    files = [file for file in files if len(file.keys)]
    if not files:
        raise VidflowError(f"evaluate.fit_head is {split!r}, but no clip of that split is left; see `vidflow rejects`")
    inputs, truth = (np.concatenate(each) for each in zip(*((f.logits[INPUTS], f.labels) for f in files), strict=True))
    weight, bias = fit_head(inputs, truth, len(clips.label_names))
    right = (inputs @ weight.numpy().T + bias.numpy()).argmax(axis=1) == truth
    save_with_head(classifier, weight, bias, clips.label_names, folder)
    log.info(
        "evaluate: %s, last layer fitted on %d clips of split %s, %.1f %% of them right -> %s",
        model.name, len(truth), split, 100 * right.mean(), folder,
    )  # fmt: skip
    return folder


__all__ = ["fit_heads"]
