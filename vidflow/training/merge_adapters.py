"""Merge what a trial trained in its encoder into a file of weights, which `encoder.weights` takes."""

import dataclasses
from pathlib import Path
from typing import Any

from vidflow.config.schema import Adaptation, Encoder
from vidflow.errors import VidflowError
from vidflow.models.encoder.adapted import AdaptedEncoder, build_adapted, merge_adapted
from vidflow.models.tensor_checks import tensor_faults
from vidflow.store.layout import publish
from vidflow.training.snapshot import read_tensors

_PREFIX = "encoder."


def merge_trial(trial: Path, to: Path, *, weights: str | None = None) -> AdaptedEncoder:
    """Write the merged weights of a trial, and return its encoder.

    Args:
        trial: The trial's `best.safetensors`.
        to: The file to write, a `.safetensors`.
        weights: The weights that the trial adapted, if they were moved; None is the recorded place.

    Raises:
        VidflowError: The trial adapted no encoder or is damaged, the weights are not those that it adapted, or the file
            has another suffix or exists.
    """
    if to.suffix != ".safetensors":
        raise VidflowError(f"{to}: wanted a file that ends in .safetensors")
    if to.exists():
        raise VidflowError(f"{to}: exists; name a file to make")
    tensors, metadata = read_tensors(trial)
    identity = metadata["identity"]
    part: dict[str, Any] = identity.get("encoder") or {}
    if not part.get("adaptation"):
        raise VidflowError(f"{trial}: a trial that adapted no encoder, so there is nothing to merge")
    encoder = _rebuild(part, weights or part["settings"]["weights"])
    _load(encoder, {key.removeprefix(_PREFIX): v for key, v in tensors.items() if key.startswith(_PREFIX)}, trial)
    packed = merge_adapted(encoder, trial=identity["key"])
    with publish(to) as aside:
        aside.write_bytes(packed)
    return encoder


def _rebuild(part: dict[str, Any], weights: str) -> AdaptedEncoder:
    """Build the encoder on a CPU in float32, as it was before training."""
    settings = dataclasses.replace(Encoder(**part["settings"]), weights=weights, dtype="float32")
    encoder = build_adapted(
        settings,
        Adaptation(**part["adaptation"]),
        num_frames=part["num_frames"],
        depths=part["depths"],
        normalize=part["normalize"],
    )
    if encoder.frozen.weights_sha256 != part["weights_sha256"]:
        raise VidflowError(
            f"{weights}: its weights have digest {encoder.frozen.weights_sha256[:16]}, but the trial adapted "
            f"{part['weights_sha256'][:16]}; name the right file with --weights FILE"
        )
    return encoder.eval()


def _load(encoder: AdaptedEncoder, found: dict[str, Any], trial: Path) -> None:
    wanted = encoder.state_dict()
    problems = [f"missing {key}" for key in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {key}" for key in sorted(found.keys() - wanted.keys())]
    problems += tensor_faults({key: found[key] for key in wanted.keys() & found.keys()}, wanted)
    if problems:
        listed = "\n  ".join(problems)
        raise VidflowError(f"{trial} does not hold what its adaptation names:\n  {listed}")
    encoder.load_state_dict(found)


__all__ = ["merge_trial"]
