"""Files of a prediction: checks of the output files, and the saved state, from which a prediction can continue."""

import argparse
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vidflow.config.paths import NO_URLS, folder_problem, is_url
from vidflow.errors import ConfigError, VidflowError
from vidflow.models.tensor_checks import state_sha256
from vidflow.store.layout import TRIAL_RESULT, publish
from vidflow.training.snapshot import BEST, LAST, PREDICTIONS, save_tensors

# Metadata name of the digest of a state's tensors.
_DIGEST = "sha256"
# A state is read completely before the next one replaces it. Depth maps all have different names.
_ALLOWED = {("--save-state", "--load-state"), ("--depth", "--depth")}


def check_folders(files: dict[str, Path | None], *, depth: Path | None) -> None:
    """Make the folders of the outputs and check that each can be written, before hours of work.

    Args:
        files: Option -> the file that it writes, or None if the option is not given.
        depth: The folder of depth maps, or None if it is not given.

    Raises:
        VidflowError: A folder cannot be written.
        ConfigError: An output is a URL.
    """
    given = {option: file for option, file in {**files, "--depth": depth}.items() if file is not None}
    for option, path in given.items():
        check_local(option, path)
    for option, path in given.items():
        folder = path if option == "--depth" else path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VidflowError(f"{option}: cannot make {folder} ({error.strerror})") from error
        if (problem := folder_problem(folder)) is not None:
            raise VidflowError(f"{option}: {problem}")


def check_local(option: str, path: Path) -> None:
    """Check that an output is a local path.

    Raises:
        ConfigError: If it is a URL; writing to it would make a local folder with that name.
    """
    if is_url(str(path)):
        raise ConfigError(f"{option}: got a URL, wanted a path on a disk: {NO_URLS}")


def check_files(arguments: argparse.Namespace, *, trial: Path, weights: str) -> None:
    """Refuse to overwrite an input or another output, also through links.

    Args:
        arguments: Arguments of `vidflow predict`.
        trial: The trial's file.
        weights: The encoder's weights: a file or another source.

    Raises:
        VidflowError: An output is an input or another output, or it would replace something other than a regular file.
    """
    replaced = {"--out": arguments.out, "--save-state": arguments.save_state}
    outputs = [(option, file) for option, file in replaced.items() if file is not None]
    for option, file in outputs:
        if os.path.exists(file) and not os.path.isfile(file):
            raise VidflowError(f"{option}: {file} is not a regular file; name another")
    if arguments.json not in (None, "-"):
        outputs.append(("--json", Path(arguments.json)))
    if arguments.depth is not None:
        outputs += [("--depth", picture) for picture in sorted(arguments.depth.glob("*.png"))]
    # An input that is not a file, such as a URL or the id of a run, cannot be overwritten.
    inputs = [(name, file) for name, file in _read(arguments, trial, weights) if os.path.exists(file)]
    for number, (option, file) in enumerate(outputs):
        for name, other in [*inputs, *outputs[:number]]:
            if (option, name) not in _ALLOWED and _is_same(file, other):
                raise VidflowError(f"{option}: {file} would write over {name} {other}; name another file")


def write_state(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Publish a state with its digest."""
    with publish(path) as aside:
        save_tensors(state, aside, {_DIGEST: state_sha256(state)})


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved state.

    Raises:
        VidflowError: There is no such file, or it is damaged.
    """
    if not path.is_file():
        raise VidflowError(f"--load-state {path}: no such file; make it with --save-state")
    try:
        with safe_open(path, framework="pt") as stored:
            # Copies, because the file may be replaced by the next state.
            state = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - not a mapping
            wanted = (stored.metadata() or {}).get(_DIGEST)
    except (OSError, SafetensorError) as error:
        raise VidflowError(f"--load-state {path}: cannot be read ({error}); make it with --save-state") from error
    if wanted is None:
        raise VidflowError(
            f"--load-state {path}: written by an older vidflow or another program, as it has no digest of its tensors; "
            "make it again with --save-state"
        )
    if (found := state_sha256(state)) != wanted:
        raise VidflowError(
            f"--load-state {path}: damaged: its tensors have digest {found}, but it says {wanted}; make it with "
            "--save-state"
        )
    return state


def _read(arguments: argparse.Namespace, trial: Path, weights: str) -> list[tuple[str, Path]]:
    """Return the inputs: a name for messages and a path."""
    found = [("the video", Path(arguments.source)), ("the encoder's weights", Path(weights))]
    found += [("the trial's", trial.parent / name) for name in (trial.name, BEST, LAST, PREDICTIONS, TRIAL_RESULT)]
    found += [("the setting", Path(word)) for word in (arguments.trial, *arguments.settings)]
    return found if arguments.load_state is None else [*found, ("--load-state", arguments.load_state)]


def _is_same(one: Path, other: Path) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return one.resolve() == other.resolve()
