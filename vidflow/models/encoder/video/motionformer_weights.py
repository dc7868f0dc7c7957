"""Build a Motionformer with random weights or those of a released checkpoint.

A released checkpoint is a `.pyth` file of SlowFast: the weights are under `model_state`, with a second, unused
embedding of single frames, `patch_embed`.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidflow.config.encoder import VIDEO_SUFFIXES
from vidflow.errors import VidflowError
from vidflow.models.encoder.loading import load_strictly, read_checkpoint
from vidflow.models.encoder.video.families import NUM_CLASSES, preset_of
from vidflow.models.encoder.video.motionformer import Motionformer, MotionformerConfig
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.sources import Source
from vidflow.models.weights import random_seed

_UNUSED = "patch_embed."
_HEADS = ("head.", "head0.", "head1.", "pre_logits.")


def load_motionformer(recipe: VideoRecipe, source: Source, *, has_head: bool) -> Motionformer:
    """Build a model and load its weights, in float32.

    The classes and the side of the table of positions are those of the file.

    Raises:
        VidflowError: The weights are no file, or do not fit; the message lists every tensor that does not.
    """
    config = motionformer_config(recipe, has_head=has_head)
    match source.kind:
        case "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_seed(source.text))
                return Motionformer(config)
        case "file":
            return _from_file(Path(source.text), config, has_head=has_head)
        case _:
            raise VidflowError(
                f"encoder.weights is {source.text!r}; motionformer wants 'random:SEED' or a file ending in "
                f"{', '.join(VIDEO_SUFFIXES)}, such as a released k400_motionformer_224_16x4.pyth"
            )


def motionformer_config(recipe: VideoRecipe, *, has_head: bool) -> MotionformerConfig:
    """Return the configuration of a recipe.

    Raises:
        VidflowError: There are settings that Motionformer does not know.
    """
    settings = {**preset_of("motionformer", recipe.size), **recipe.settings}
    known = [field.name for field in fields(MotionformerConfig)]
    if unknown := sorted(settings.keys() - set(known)):
        raise VidflowError(f"encoder.settings has {', '.join(unknown)}; motionformer knows {', '.join(known)}")
    labels = settings.pop("num_labels", NUM_CLASSES)
    classes = labels if isinstance(labels, Mapping) else {"class": labels}
    return MotionformerConfig(**settings, num_labels=classes if has_head else None)


def _from_file(path: Path, config: MotionformerConfig, *, has_head: bool) -> Motionformer:
    found = read_checkpoint(path)
    found = found.get("model_state", found)
    if not isinstance(found, Mapping):
        raise VidflowError(f"{path}: model_state is a {type(found).__name__}; wanted tensors by name")
    found = {key: value for key, value in found.items() if not key.startswith(_UNUSED)}
    if not has_head:
        found = {key: value for key, value in found.items() if not key.startswith(_HEADS)}
    model = Motionformer(
        replace(config, table_size=_table_size(found, config), num_labels=_classes(found) if has_head else None)
    )
    load_strictly(model, found, path=path, name="motionformer")
    return model


def _table_size(found: Mapping[str, Any], config: MotionformerConfig) -> int | None:
    """Return the side of the square table of positions; what is no such table is reported with the other tensors."""
    table = found.get("pos_embed")
    if not isinstance(table, Tensor) or table.ndim != 3 or table.shape[1] < 2:
        return config.table_size
    return math.isqrt(table.shape[1] - 1)


def _classes(found: Mapping[str, Any]) -> Mapping[str, int]:
    """Count the classes of each head: one head, or those of verbs and nouns (EPIC-KITCHENS)."""
    names = {"head0": "verb", "head1": "noun"} if "head0.weight" in found else {"head": "class"}
    weights = {ours: found.get(f"{theirs}.weight") for theirs, ours in names.items()}
    if missing := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        raise VidflowError(f"the checkpoint has no classifier: missing the head of {', '.join(missing)}")
    return {name: int(weight.shape[0]) for name, weight in weights.items() if isinstance(weight, Tensor)}


__all__ = ["load_motionformer"]
