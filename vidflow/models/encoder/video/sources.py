"""Where the weights of a video transformer come from, and what the published ones were trained on."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

from vidflow.errors import VidflowError
from vidflow.models.encoder.video.families import Fps

FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".pyth")


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of weights.

    Attributes:
        kind: What `text` is.
        text: An id on the Hugging Face hub, a path, or `random:SEED`.
    """

    kind: Literal["hub", "folder", "file", "random"]
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
    if path.suffix in FILE_SUFFIXES:
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
        f"{', '.join(FILE_SUFFIXES)}, or 'random:SEED'"
    )


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
    names = ("video_preprocessor_config.json", "preprocessor_config.json")
    if source.kind == "folder":
        paths = [Path(source.text) / name for name in names]
        return next((path for path in paths if path.is_file()), None)
    if source.kind == "hub":
        for name in names:
            try:
                return Path(hf_hub_download(source.text, name))
            except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled):
                continue
    return None


__all__ = ["FILE_SUFFIXES", "Source", "preprocessor_of", "published_fps", "source_of"]
