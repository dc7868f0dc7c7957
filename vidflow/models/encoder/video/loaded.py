"""Load a video transformer of any family: its parts, its clips, its shape, its classes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, assert_never

import torch

from vidflow.errors import VidflowError
from vidflow.models.encoder.video.blocks import Backbone
from vidflow.models.encoder.video.cost import ClipShape, geometry_of, shape_of
from vidflow.models.encoder.video.families import facts_of
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.motionformer import motionformer_backbone
from vidflow.models.encoder.video.motionformer_weights import load_motionformer, motionformer_config
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.sources import Source, preprocessor_of, published_fps, source_of
from vidflow.models.encoder.video.stock import library_config, library_version, load_library_model
from vidflow.models.encoder.video.timesformer import timesformer_backbone
from vidflow.models.encoder.video.videomae import videomae_backbone
from vidflow.models.encoder.video.vivit import vivit_backbone
from vidflow.models.encoder.video.vjepa2 import vjepa2_backbone

# What of a library's configuration decides nothing that the model computes.
_IDLE_SETTINGS = ("id2label", "label2id", "transformers_version", "architectures", "dtype", "problem_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A video transformer with its weights, in float32.

    Attributes:
        backbone: The model in parts.
        geometry: The clips that it wants.
        shape: The numbers that its cost depends on.
        settings: The settings of its configuration that decide what it computes, as JSON-ready values.
        class_names: Names of the classes of each head; empty without a classifier.
    """

    backbone: Backbone
    geometry: ClipGeometry
    shape: ClipShape
    settings: Mapping[str, Any]
    class_names: Mapping[str, tuple[str, ...]]


def load_video_model(recipe: VideoRecipe, *, has_head: bool, device: torch.device) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        recipe: What to build.
        has_head: Whether with its classifier.
        device: Where to put it.

    Raises:
        VidflowError: The library is missing or has other names, or the weights are not there or do not fit.
    """
    facts_of(recipe.family)
    source = source_of(recipe.weights)
    if recipe.family == "motionformer":
        return _own_model(recipe, source, has_head, device)
    model: Any = load_library_model(recipe, source, has_head=has_head).to(device).eval()
    settings = model.config.to_dict()
    names = {"class": tuple(model.config.id2label[index] for index in range(model.config.num_labels))}
    return LoadedModel(
        backbone=_library_backbone(recipe, model, has_head),
        geometry=clip_geometry(recipe, source, settings),
        shape=shape_of(recipe.family, settings, num_classes=[len(each) for each in names.values()] if has_head else ()),
        settings={key: value for key, value in model.config.to_diff_dict().items() if key not in _IDLE_SETTINGS},
        class_names=names if has_head else {},
    )


def outline_of(recipe: VideoRecipe) -> tuple[ClipGeometry, ClipShape]:
    """Return the clips and the shape of an encoder without loading its weights.

    Raises:
        VidflowError: The library or the configuration is missing, or does not fit.
    """
    settings = settings_of(recipe, has_head=False)
    return clip_geometry(recipe, source_of(recipe.weights), settings), shape_of(recipe.family, settings)


def settings_of(recipe: VideoRecipe, *, has_head: bool) -> Mapping[str, Any]:
    """Return the configuration of a model without loading its weights.

    Raises:
        VidflowError: The library or the configuration is missing, or does not fit.
    """
    facts_of(recipe.family)
    source = source_of(recipe.weights)
    if recipe.family == "motionformer":
        return asdict(motionformer_config(recipe, has_head=has_head))
    settings: Mapping[str, Any] = library_config(recipe, source).to_dict()
    return settings


def _own_model(recipe: VideoRecipe, source: Source, has_head: bool, device: torch.device) -> LoadedModel:
    model = load_motionformer(recipe, source, has_head=has_head).to(device).eval()
    settings, classes = asdict(model.config), model.config.num_labels or {}
    return LoadedModel(
        backbone=motionformer_backbone(model),
        geometry=clip_geometry(recipe, source, settings),
        shape=shape_of(recipe.family, settings, num_classes=tuple(classes.values())),
        settings=settings,
        class_names={head: tuple(f"LABEL_{index}" for index in range(count)) for head, count in classes.items()},
    )


def _library_backbone(recipe: VideoRecipe, model: Any, has_head: bool) -> Backbone:
    try:
        match recipe.family:
            case "vivit":
                return vivit_backbone(model, has_head=has_head)
            case "videomae":
                return videomae_backbone(model, has_head=has_head)
            case "timesformer":
                return timesformer_backbone(model, has_head=has_head)
            case "vjepa2":
                return vjepa2_backbone(model, has_head=has_head)
            case "motionformer":
                raise AssertionError("motionformer is not the library's")
            case _:
                assert_never(recipe.family)
    except AttributeError as error:
        raise VidflowError(
            f"{recipe.family}: transformers {library_version()} has other parts than we know ({error}); install the "
            "version that vidflow is tested with: pip install 'vidflow[video]'"
        ) from error


def clip_geometry(recipe: VideoRecipe, source: Source, settings: Mapping[str, Any]) -> ClipGeometry:
    """Return the clips of a model; the checkpoint's own file decides on mean and standard deviation."""
    facts = facts_of(recipe.family)
    num_frames, tubelet, side, patch = geometry_of(recipe.family, settings)
    # ViViT's published file says what the model was not trained on; see its facts.
    file = preprocessor_of(source) if recipe.family != "vivit" else {}
    return ClipGeometry(
        num_frames=num_frames,
        tubelet=tubelet,
        img_size=side,
        patch_size=patch,
        fps=recipe.fps or published_fps(source) or facts.fps,
        mean=tuple(file.get("image_mean", facts.mean)),
        std=tuple(file.get("image_std", facts.std)),
        input_range=facts.input_range,
    )


__all__ = ["LoadedModel", "clip_geometry", "load_video_model", "outline_of", "settings_of"]
