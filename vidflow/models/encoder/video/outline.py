"""What a video transformer will be, from its configuration alone: clips, shape and class names, without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from vidflow.errors import VidflowError
from vidflow.files import file_sha256
from vidflow.models.encoder.video.cost import ClipShape, shape_of
from vidflow.models.encoder.video.families import preset_of
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.library import read_settings
from vidflow.models.encoder.video.loaded import clip_geometry
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.sources import source_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A classifier before it is built.

    Attributes:
        geometry: The clips that it wants.
        shape: The numbers that its cost depends on.
        class_names: Names of the classes of each head.
    """

    geometry: ClipGeometry
    shape: ClipShape
    class_names: Mapping[str, tuple[str, ...]]


def outline_of(recipe: VideoRecipe, class_names: Mapping[str, tuple[str, ...]] | None = None) -> Outline:
    """Read the configuration of a classifier.

    Args:
        recipe: The classifier.
        class_names: Names of the classes of each head; None is the configuration's own.

    Raises:
        VidflowError: The library is missing, or the configuration is not there.
    """
    source = source_of(recipe.weights)
    if recipe.family == "motionformer":
        settings: Mapping[str, Any] = {**preset_of(recipe.family, recipe.size), **recipe.settings}
    else:
        settings = read_settings(recipe, source)
    names = class_names or {"class": _own_names(settings)}
    return Outline(
        geometry=clip_geometry(recipe, source, settings),
        shape=shape_of(recipe.family, settings, num_classes=[len(each) for each in names.values()]),
        class_names=names,
    )


def _own_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that the configuration gives; our own models give none."""
    names = settings.get("id2label") or {index: f"LABEL_{index}" for index in range(settings.get("num_labels", 400))}
    return tuple(names[index] for index in sorted(names, key=int))


def weights_identity(weights: str) -> str:
    """Return a text that changes when the weights change, without loading them.

    Raises:
        VidflowError: They are not there.
    """
    source = source_of(weights)
    match source.kind:
        case "random":
            return f"{weights} transformers={version('transformers')} torch={version('torch')}"
        case "file":
            return f"sha256:{file_sha256(Path(weights))}"
        case "folder":
            files = [path for path in sorted(Path(weights).iterdir()) if path.suffix in (".json", ".safetensors")]
            return " ".join(f"{path.name}:{file_sha256(path)}" for path in files)
        case "hub":
            return _hub_identity(weights)


def _hub_identity(name: str) -> str:
    """Return the commit of the repository whose files are used."""
    try:
        path = Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise VidflowError(
            f"the weights {name!r} are neither in the Hugging Face cache nor reachable: {error}; download them once "
            "with a connection, or name a folder"
        ) from error
    return f"{name}@{path.parent.name}"


__all__ = ["Outline", "outline_of", "weights_identity"]
