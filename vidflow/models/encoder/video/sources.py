"""Where the weights of a video transformer come from, and what the published ones were trained on."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download, snapshot_download

from vidflow.config.encoder import VIDEO_SUFFIXES
from vidflow.errors import VidflowError
from vidflow.models.encoder.hub import HUB_FAILURES
from vidflow.models.encoder.video.families import Fps

_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
SETTINGS_FILES = ("config.json", *_PREPROCESSORS)


SourceKind = Literal["hub", "folder", "file", "random"]


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of weights.

    Attributes:
        kind: What `text` is.
        text: An id on the Hugging Face hub, a path, or `random:SEED`.
    """

    kind: SourceKind
    text: str


def source_of(weights: str) -> Source:
    """Say what a `weights` setting of a video encoder means.

    Raises:
        VidflowError: It is none of the four.
    """
    if re.fullmatch(r"random:\d+", weights):
        return Source("random", weights)
    path = Path(weights)
    if path.is_dir():
        return Source("folder", weights)
    if path.suffix in VIDEO_SUFFIXES:
        if not path.is_file():
            raise VidflowError(
                f"encoder.weights is {weights!r}, but there is no such file (looked at {path.absolute()})"
            )
        return Source("file", weights)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        return Source("hub", weights)
    raise VidflowError(
        f"encoder.weights is {weights!r}; wanted an id on the Hugging Face hub such as "
        "'google/vivit-b-16x2-kinetics400', a folder with config.json and model.safetensors, a file ending in "
        f"{', '.join(VIDEO_SUFFIXES)}, or 'random:SEED'"
    )


def snapshot_of(source: Source) -> list[Path]:
    """Return the files of a folder, or of a model on the hub, that decide what the model computes, in order of name.

    Files on the hub are downloaded on first use. Without `.safetensors` files, the weights are in a `.bin` file.

    Raises:
        VidflowError: There are no weights, or the hub is not reachable.
    """
    folder = Path(source.text)
    if source.kind == "hub":
        try:
            folder = Path(snapshot_download(source.text, allow_patterns=["*.json", "*.safetensors"]))
            if not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(source.text, allow_patterns=["*.json", "*.bin"]))
        except HUB_FAILURES as error:
            raise VidflowError(
                f"the weights {source.text!r} are neither in the Hugging Face cache nor reachable: {error}. Download "
                "them once with a connection (HF_HUB_OFFLINE unset), or give encoder.weights a local folder"
            ) from error
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise VidflowError(f"encoder.weights is {source.text!r}, but {folder} holds no .safetensors file")
    return sorted([*weights, *(path for name in SETTINGS_FILES if (path := folder / name).is_file())])


# What published models were trained on, if not their family's: 30 by the stride, or the middles of equal segments.
_FPS: Mapping[str, Fps] = {
    "facebook/timesformer-hr-finetuned-k400": 30 / 16,
    "fcakyon/timesformer-hr-finetuned-k600": 30 / 16,
    "facebook/timesformer-base-finetuned-ssv2": "uniform",
    "facebook/timesformer-hr-finetuned-ssv2": "uniform",
    "MCG-NJU/videomae-base-finetuned-ssv2": "uniform",
    "MCG-NJU/videomae-base-short-finetuned-ssv2": "uniform",
}


def published_fps(source: Source) -> Fps | None:
    """Return the frames per second that published weights were trained on, if they are not the family's."""
    return _FPS.get(source.text) if source.kind == "hub" else None


def preprocessor_of(source: Source) -> Mapping[str, Any]:
    """Read the file that says how the checkpoint wants its pixels; empty if there is none.

    Raises:
        VidflowError: The file is not JSON.
    """
    path = _preprocessor_path(source)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise VidflowError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise VidflowError(f"{path} holds a {type(found).__name__}; wanted settings by name")
    return found


def _preprocessor_path(source: Source) -> Path | None:
    if source.kind == "folder":
        paths = [Path(source.text) / name for name in _PREPROCESSORS]
        return next((path for path in paths if path.is_file()), None)
    if source.kind == "hub":
        for name in _PREPROCESSORS:
            try:
                return Path(hf_hub_download(source.text, name))
            except HUB_FAILURES:
                continue
    return None


__all__ = ["Source", "preprocessor_of", "published_fps", "snapshot_of", "source_of"]
