"""Identify an encoder's weights without building it; torch and timm are imported only for weights from the hub.

The identity goes into fingerprints, so that a stage can tell within a second that its artifacts are complete.
"""

import functools
import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

from vidflow.files import FileState, file_sha256, file_state
from vidflow.models.weights import weights_kind


def weights_identity(name: str, weights: str) -> str:
    """Return a string that changes when the encoder's weights change, without building the encoder.

    A process reads an unchanged file once, and asks the hub for a model's file once.

    Args:
        name: The timm model the weights are for.
        weights: `hub`, `random:SEED`, or the path of a checkpoint.

    Returns:
        The sha256 of the file or of the hub's file. For random weights the seed and the versions of timm and torch,
        which initialise the weights.

    Raises:
        VidflowError: The setting is malformed, the file does not exist, or the hub does not have it.
    """
    kind = weights_kind(weights)
    if kind == "random":
        return f"{weights} timm={version('timm')} torch={version('torch')}"
    if kind == "file":
        return f"sha256:{_sha256_of_file(Path(weights), file_state(weights))}"
    return _hub_identity(name)


def video_weights_identity(family: str, weights: str) -> str:
    """Return a string that changes when the weights, configuration or normalisation of a video transformer change.

    Args:
        family: The family of the model.
        weights: An id on the hub, a folder, a file, or `random:SEED`.

    Raises:
        VidflowError: The setting is malformed, or the files are not there.
    """
    from vidflow.models.encoder.video.sources import snapshot_of, source_of

    source = source_of(weights)
    match source.kind:
        case "random":
            library = "" if family == "motionformer" else f" transformers={version('transformers')}"
            return f"{family} {weights}{library} torch={version('torch')}"
        case "file":
            return f"{family} sha256:{_sha256_of_file(Path(weights), file_state(weights))}"
        case "folder" | "hub":
            files = snapshot_of(source)
            parts = [f"{path.name} {_sha256_of_file(path, file_state(str(path)))}" for path in files]
            return f"{family} sha256:{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"
        case _:
            assert_never(source.kind)


@functools.cache
def _hub_identity(name: str) -> str:
    # Only timm knows which file that is. Imported here because the import takes seconds.
    from vidflow.models.encoder.hub import hub_file

    path = hub_file(name)
    # The hub's cache names a large file's blob by its sha256, which saves reading gigabytes again.
    blob = path.resolve().name
    return f"hub:sha256:{blob if re.fullmatch(r'[0-9a-f]{64}', blob) else _sha256_of_file(path, file_state(path))}"


@functools.cache
def _sha256_of_file(path: Path, _: FileState) -> str:
    return file_sha256(path)


__all__ = ["video_weights_identity", "weights_identity"]
