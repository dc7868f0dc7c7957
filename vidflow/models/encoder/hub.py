"""Find the weights that timm's authors publish on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import hub_location


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
        except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
            problem = problem or error
    raise VidflowError(
        f"the weights of {name!r} are neither in the Hugging Face cache nor reachable at {repo!r}: {problem}. "
        "Download them once with a connection (HF_HUB_OFFLINE unset), or give encoder.weights a local file"
    ) from problem


__all__ = ["hub_file"]
