"""The models of an evaluation, made ready on the driver: class names, clips, and the address of each point."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vidflow.config.fingerprints import STAGE_VERSIONS, fingerprint
from vidflow.config.roots import root_path
from vidflow.config.schema import Config
from vidflow.errors import VidflowError
from vidflow.models.encoder.video.families import Fps
from vidflow.models.encoder.video.outline import ClassifierOutline, classifier_outline
from vidflow.models.identity import video_weights_identity
from vidflow.stages.address import Address
from vidflow.stages.evaluation.labels import read_class_names
from vidflow.stages.evaluation.points import Point, recipe_of, reduction_of
from vidflow.stages.evaluation.views import View, list_views, published_pixels
from vidflow.stages.evaluation.worker import ModelSetup

FOLDER = "evaluations"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyModel:
    """A model before it is built.

    Attributes:
        name: Its name.
        outline: Its clips, shape and class names.
        setup: What workers build it from.
        views: How it sees every video.
        identity: Text that changes when its weights change.
    """

    name: str
    outline: ClassifierOutline
    setup: ModelSetup
    views: Sequence[View]
    identity: str


def ready_model(config: Config, name: str, labels: Sequence[str]) -> ReadyModel:
    """Make a model ready.

    Args:
        config: The experiment.
        name: Name of the model.
        labels: Labels of the manifest, sorted; they are the classes of random weights.

    Raises:
        ConfigError: If the protocol does not fit the model, or a file of class names cannot be read.
        VidflowError: If a package is missing or the weights are not there.
    """
    model = config.evaluate.models[name]
    recipe = recipe_of(config, name, labels)
    given: Mapping[str, tuple[str, ...]] = read_class_names(model.class_names)
    if not given and labels and model.weights.startswith("random:"):
        given = {"class": tuple(labels)}
    try:
        outline = classifier_outline(recipe, given or None)
        identity = video_weights_identity(recipe.family, recipe.weights)
    except VidflowError as error:
        raise VidflowError(f"evaluate.models.{name}: {error}") from error
    return ReadyModel(
        name=name,
        outline=outline,
        setup=ModelSetup(
            settings=model,
            recipe=recipe,
            class_names=given or None,
            geometry=published_pixels(config, name, outline.geometry),
        ),
        views=list_views(config, name, outline.geometry),
        identity=identity,
    )


def locate_point(
    config: Config,
    model: ReadyModel,
    point: Point,
    shards: Address,
    dtype: str,
    *,
    split: str,
    answer: str = "logits",
) -> Address:
    """Return the folder of a point's logits on the shards of one view.

    Args:
        config: The experiment.
        model: The point's model.
        point: The point.
        shards: Address of the shards.
        dtype: Number format in which the model runs.
        split: Split whose clips are evaluated.
        answer: What is stored of a clip.
    """
    reduction = reduction_of(point, model.setup.settings)
    settings: dict[str, Any] = {
        "version": STAGE_VERSIONS["evaluate"],
        "shards": shards.fingerprint,
        "split": split,
        "answer": answer,
        "model": {**asdict(model.setup.recipe), "weights": model.identity},
        "classes": {head: list(names) for head, names in model.outline.class_names.items()},
        "geometry": asdict(model.setup.geometry),
        "reduction": None if reduction is None else asdict(reduction),
        "dtype": dtype,
    }
    settings["model"]["settings"] = {
        key: value for key, value in model.setup.recipe.settings.items() if key not in ("id2label", "label2id")
    }
    return Address(directory=root_path(config) / FOLDER / fingerprint(settings), settings=settings)


def with_weights(config: Config, name: str, folder: Path, fps: Fps) -> Config:
    """Return the experiment with other weights of a model, which bring their own classes."""
    model = replace(config.evaluate.models[name], weights=str(folder), size=None, settings={}, class_names={}, fps=fps)
    evaluate = replace(config.evaluate, models={**config.evaluate.models, name: model})
    return replace(config, evaluate=evaluate)


__all__ = ["FOLDER", "ReadyModel", "locate_point", "ready_model", "with_weights"]
