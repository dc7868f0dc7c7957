"""Find the weights that timm's authors publish on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import hub_location

# How long to wait for an answer of the hub.
_SECONDS = 5.0

# The bases of HfHubHTTPError are OSError and the base error of the HTTP client, which differs between versions of
# huggingface_hub (requests, httpx, httpx2). The client raises it without a network, at a proxy, if a connection breaks.
HUB_FAILURES: tuple[type[Exception], ...] = (EntryNotFoundError, OfflineModeIsEnabled, *HfHubHTTPError.__bases__)
"""What huggingface_hub raises if a file does not exist or the hub cannot be reached."""


def hub_file(name: str) -> Path:
    """Return the path of a timm model's published weights; they are downloaded on first use.

    Raises:
        VidflowError: timm publishes no weights for `name`, or they are neither cached nor reachable.
    """
    repo, filename = hub_location(name)
    problem: Exception | None = None
    for candidate in [filename] if filename else ["model.safetensors", "pytorch_model.bin"]:
        try:
            # If the hub was unreachable before, look in the cache only: each attempt to connect takes half a minute.
            offline = isinstance(problem, LocalEntryNotFoundError)
            return Path(hf_hub_download(repo, candidate, local_files_only=offline))
        except HUB_FAILURES as error:
            problem = problem or error
    raise VidflowError(
        f"the weights of {name!r} are neither in the Hugging Face cache nor reachable at {repo!r}: {problem}. "
        "Download them once with a connection (HF_HUB_OFFLINE unset), or give encoder.weights a local file"
    ) from problem


def check_hub(name: str) -> None:
    """Check that a model's published weights are in the cache or can be downloaded, without downloading them.

    Raises:
        VidflowError: timm publishes no weights for `name`, or they are neither cached nor reachable within seconds.
    """
    repo, filename = hub_location(name)
    files = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(try_to_load_from_cache(repo, each), str) for each in files):
        return
    problem: Exception | None = None
    for each in files:
        try:
            get_hf_file_metadata(hf_hub_url(repo, each), timeout=_SECONDS)
        except EntryNotFoundError as error:
            problem = problem or error
        except HUB_FAILURES as error:
            problem = error
            break  # the hub would not answer for the other name either
        else:
            return
    raise VidflowError(
        f"encoder.weights: got hub, but the weights of {name!r} are not in the Hugging Face cache and cannot be "
        f"downloaded from {repo!r} ({_first_line(problem)}). Download them once with a connection, or add "
        "encoder.weights=FILE.safetensors; to try things without them, add encoder.weights=random:0"
    )


def _first_line(problem: Exception | None) -> str:
    return str(problem).strip().partition("\n")[0] or type(problem).__name__


__all__ = ["HUB_FAILURES", "check_hub", "hub_file"]
