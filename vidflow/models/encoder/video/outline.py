"""What a video classifier will be, from its configuration alone: clips, shape and class names, without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidflow.models.encoder.video.cost import ClipShape, shape_of
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.loaded import clip_geometry, settings_of
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.sources import source_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierOutline:
    """A classifier before it is built.

    Attributes:
        geometry: The clips that it wants.
        shape: The numbers that its cost depends on.
        class_names: Names of the classes of each head.
    """

    geometry: ClipGeometry
    shape: ClipShape
    class_names: Mapping[str, tuple[str, ...]]


def classifier_outline(
    recipe: VideoRecipe, class_names: Mapping[str, tuple[str, ...]] | None = None
) -> ClassifierOutline:
    """Read the configuration of a classifier.

    Args:
        recipe: The classifier.
        class_names: Names of the classes of each head; None is the configuration's own.

    Raises:
        VidflowError: The library is missing, or the configuration is not there.
    """
    settings = settings_of(recipe, has_head=True)
    names = class_names or _own_names(settings)
    return ClassifierOutline(
        geometry=clip_geometry(recipe, source_of(recipe.weights), settings),
        shape=shape_of(recipe.family, settings, num_classes=[len(each) for each in names.values()]),
        class_names=names,
    )


def _own_names(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the names that the configuration gives; our own models have numbers of classes alone."""
    if "id2label" in settings:
        names = settings["id2label"]
        return {"class": tuple(names[index] for index in sorted(names, key=int))}
    return {head: tuple(f"LABEL_{index}" for index in range(count)) for head, count in settings["num_labels"].items()}


__all__ = ["ClassifierOutline", "classifier_outline"]
