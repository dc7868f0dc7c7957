"""Say which weights an encoder will have, cheaply: neither torch nor timm is imported to answer.

The identity goes into fingerprints, so that a stage can tell within a second that its artifacts are complete.
"""

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from vidflow.errors import VidflowError

WeightsKind = Literal["hub", "random", "file"]
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")


def weights_kind(weights: str) -> WeightsKind:
    """Say what a `weights` setting means: `hub`, `random:SEED` or the path of a checkpoint.

    Raises:
        VidflowError: It is none of the three, or the file does not exist.
    """
    if weights == "hub":
        return "hub"
    if re.fullmatch(r"random:\d+", weights):
        return "random"
    path = Path(weights)
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise VidflowError(
            f"encoder.weights is {weights!r}; wanted 'hub', 'random:SEED' with a whole number, "
            f"or the path of a checkpoint ending in {', '.join(CHECKPOINT_SUFFIXES)}"
        )
    if not path.is_file():
        raise VidflowError(f"encoder.weights is {weights!r}, but there is no such file (looked at {path.absolute()})")
    return "file"


def random_seed(weights: str) -> int:
    """Return the seed of a `random:SEED` setting."""
    return int(weights.removeprefix("random:"))


def weights_identity(name: str, weights: str) -> str:
    """Return a string that changes when the encoder's weights do, without building the encoder.

    Args:
        name: The timm model the weights are for.
        weights: `hub`, `random:SEED`, or the path of a checkpoint.

    Returns:
        For a file and for the hub the file's sha256. For random weights the seed together with the versions of timm and
        torch, whose initialisers and generators make the weights.

    Raises:
        VidflowError: The setting is malformed, the file does not exist, or the hub does not have it.
    """
    kind = weights_kind(weights)
    if kind == "random":
        return f"{weights} timm={version('timm')} torch={version('torch')}"
    if kind == "file":
        return f"sha256:{_sha256_of_file(Path(weights))}"
    path = hub_file(name)
    # The hub's cache names a large file's blob by its sha256, which saves reading gigabytes again.
    blob = path.resolve().name
    return f"hub:sha256:{blob if re.fullmatch(r'[0-9a-f]{64}', blob) else _sha256_of_file(path)}"


def hub_file(name: str) -> Path:
    """Return the local copy of a timm model's published weights, downloading them on first use.

    Raises:
        VidflowError: timm publishes no weights for `name`, or they are neither cached nor reachable.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # Only timm knows which repository a model's default tag stands for; importing it costs seconds, hence here.
    from vidflow.models.encoder import hub_location

    repo, filename = hub_location(name)
    problem: Exception | None = None
    for candidate in [filename] if filename else ["model.safetensors", "pytorch_model.bin"]:
        try:
            # Once the hub has proved unreachable, look in the cache only: each attempt to connect takes half a minute.
            offline = isinstance(problem, LocalEntryNotFoundError)
            return Path(hf_hub_download(repo, candidate, local_files_only=offline))
        except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
            problem = problem or error
    raise VidflowError(
        f"the weights of {name!r} are neither in the Hugging Face cache nor reachable at {repo!r}: {problem}. "
        "Download them once with a connection (HF_HUB_OFFLINE unset), or give encoder.weights a local file"
    ) from problem


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["CHECKPOINT_SUFFIXES", "WeightsKind", "hub_file", "random_seed", "weights_identity", "weights_kind"]
