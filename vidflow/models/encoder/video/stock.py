"""Import transformers, and load a model from a hub id, a folder, a file or at random.

Source: transformers 5.23, whose attribute names the adapters use.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidflow.errors import VidflowError
from vidflow.models.encoder.loading import load_strictly, read_checkpoint
from vidflow.models.encoder.video.families import NUM_CLASSES, preset_of
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.sources import Source
from vidflow.models.weights import random_seed

# Class of the configuration, of the bare model and of the classifier.
_CLASSES = {
    "vivit": ("VivitConfig", "VivitModel", "VivitForVideoClassification"),
    "videomae": ("VideoMAEConfig", "VideoMAEModel", "VideoMAEForVideoClassification"),
    "timesformer": ("TimesformerConfig", "TimesformerModel", "TimesformerForVideoClassification"),
    "vjepa2": ("VJEPA2Config", "VJEPA2Model", "VJEPA2ForVideoClassification"),
}
# What a bare model may leave of a checkpoint: classifiers, poolers, and the decoder of pre-training.
_HEADS = ("classifier.", "fc_norm.", "pooler.", "decoder.", "encoder_to_decoder.", "mask_token")


def transformers_package(family: str) -> Any:
    """Import transformers, which takes seconds and may be missing.

    Raises:
        VidflowError: It is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise VidflowError(
            f"encoder.family {family!r} needs the package {error.name}, which is not installed; install it with: "
            "pip install 'vidflow[video]'"
        ) from error
    return transformers


def load_library_model(recipe: VideoRecipe, source: Source, *, has_head: bool) -> nn.Module:
    """Build a model of transformers and load its weights, in float32.

    Args:
        recipe: What to build.
        source: Where the weights are.
        has_head: Whether the model is a classifier.

    Raises:
        VidflowError: The package or the weights are missing, or they do not fit.
    """
    family = recipe.family
    _, bare, classifier = (getattr(transformers_package(family), name) for name in _CLASSES[family])
    kind = classifier if has_head else bare
    options = {"add_pooling_layer": False} if family == "vivit" and not has_head else {}
    config = library_config(recipe, source)
    # TimeSformer has no fused attention of its own.
    config._attn_implementation = "eager" if recipe.attention == "eager" or family == "timesformer" else "sdpa"
    if source.kind in ("hub", "folder"):
        return _from_pretrained(kind, source, config, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(source.text) if source.kind == "random" else 0)
        model: nn.Module = kind(config, **options)
    if source.kind == "file":
        path = Path(source.text)
        load_strictly(model, read_checkpoint(path), path=path, name=type(model).__name__)
    return model


def library_config(recipe: VideoRecipe, source: Source) -> Any:
    """Return the library's configuration of a model, without its weights.

    Raises:
        VidflowError: The package or the configuration is missing, or does not fit.
    """
    family, settings = recipe.family, recipe.settings
    package = transformers_package(family)
    config_class = getattr(package, _CLASSES[family][0])
    if source.kind in ("hub", "folder"):
        return _read_config(package, config_class, source, settings)
    _check_settings(config_class(), settings)
    classes = {} if "id2label" in settings else {"num_labels": NUM_CLASSES}
    return config_class(**{**classes, **preset_of(family, recipe.size), **settings})


def _read_config(package: Any, config_class: Any, source: Source, settings: Mapping[str, Any]) -> Any:
    try:
        config = package.AutoConfig.from_pretrained(source.text)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(source, error) from error
    if not isinstance(config, config_class):
        raise VidflowError(
            f"encoder.weights {source.text!r} hold a {config.model_type!r}; encoder.family wants a "
            f"{config_class.model_type!r}"
        )
    _check_settings(config, settings)
    for key, value in settings.items():
        setattr(config, key, value)
    return config


def _check_settings(config: Any, settings: Mapping[str, Any]) -> None:
    if unknown := [key for key in settings if not hasattr(config, key)]:
        raise VidflowError(f"encoder.settings has {', '.join(unknown)}, which {type(config).__name__} does not know")


def _from_pretrained(kind: Any, source: Source, config: Any, options: Mapping[str, Any]) -> nn.Module:
    """Load strictly: nothing may be missing, and only heads and decoders may be left over."""
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                source.text, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
    except OSError as error:
        raise _unreachable(source, error) from error
    except (RuntimeError, ValueError) as error:
        raise VidflowError(
            f"the weights {source.text!r} do not fit the model of their configuration and encoder.settings: {error}"
        ) from error
    # V-JEPA 2's predictor is for pre-training alone: no output of ours needs it, and we save none.
    problems = [f"missing {key}" for key in sorted(report["missing_keys"]) if ".predictor." not in f".{key}"]
    leftover = [key.removeprefix(f"{kind.base_model_prefix}.") for key in sorted(report["unexpected_keys"])]
    problems += [f"unexpected {key}" for key in leftover if not key.startswith(_HEADS)]
    if problems:
        raise VidflowError(
            f"the weights {source.text!r} do not fit a {kind.__name__}; {len(problems)} tensors differ:\n  "
            + "\n  ".join(problems)
        )
    result: nn.Module = model
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's table of tensors and its progress bar off the screen: we report what does not fit."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _unreachable(source: Source, error: Exception) -> VidflowError:
    where = "in the folder" if source.kind == "folder" else "in the Hugging Face cache or reachable on the hub"
    return VidflowError(f"encoder.weights is {source.text!r}, of which the files are not {where}: {error}")


def save_library_model(model: Any, folder: Path) -> None:
    """Save a model as a folder with `config.json` and `model.safetensors`."""
    with _quiet():
        model.save_pretrained(folder)


def library_version() -> str:
    """Return the version of transformers."""
    return version("transformers")


__all__ = [
    "library_config",
    "library_version",
    "load_library_model",
    "save_library_model",
    "transformers_package",
]
