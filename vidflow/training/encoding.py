"""How the encoder runs within a trial: the record that crosses from the configuration, and the module built from it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from vidflow.config.encoder import image_settings
from vidflow.config.fingerprints import clip_settings
from vidflow.config.schema import Adaptation, Augmentation, Config, Encoder, Trial
from vidflow.errors import VidflowError
from vidflow.models.encoder.adapted import build_adapted
from vidflow.models.encoder.build import build_encoder
from vidflow.models.encoder.frozen import FrozenEncoder
from vidflow.models.tasks import Task
from vidflow.training.encoded_task import EncodedTask


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderPart:
    """What of an encoder a trial runs and trains; stored in the trial's files.

    Attributes:
        settings: The encoder.
        adaptation: What is trained in it; None: nothing.
        depths: Blocks whose output the task sees.
        normalize: Whether the final norm is applied to them.
        num_frames: Frames of a clip.
        first_block: Block that stored streams enter; None: batches hold frames.
        weights_sha256: Digest of the frozen weights; empty before the encoder is built.
    """

    settings: Encoder
    adaptation: Adaptation | None
    depths: tuple[int, ...]
    normalize: bool
    num_frames: int
    first_block: int | None = None
    weights_sha256: str = ""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "EncoderPart":
        """Return the record that `dataclasses.asdict` turned into plain values."""
        adaptation, depths = values["adaptation"], tuple(values["depths"])
        return cls(
            **{
                **values,
                "settings": Encoder(**values["settings"]),
                "adaptation": None if adaptation is None else Adaptation(**adaptation),
                "depths": depths,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What a trial in which the encoder runs needs besides its clips.

    Attributes:
        part: The encoder.
        augmentation: How training clips change; None: not at all.
        clip: The settings that decide the frames of a clip.
        clips_per_pass: Clips that go through the encoder at a time; None is a whole batch.
        checkpointing: Whether blocks are computed again for the gradient instead of kept.
        num_threads: Threads that read, decompress and augment frames.
    """

    part: EncoderPart
    augmentation: Augmentation | None
    clip: dict[str, Any]
    clips_per_pass: int | None
    checkpointing: bool
    num_threads: int

    @classmethod
    def of(cls, config: Config, trial: Trial) -> "Encoding | None":
        """Return what a trial needs; None if the encoder does not run in it."""
        if trial.feed == "features":
            return None
        features = config.features[trial.features]
        is_prefix = trial.feed == "prefix"
        return cls(
            part=EncoderPart(
                settings=config.encoder,
                adaptation=None if trial.adaptation is None else config.adaptations[trial.adaptation],
                depths=(-1,) if is_prefix else tuple(features.depths),
                normalize=is_prefix or features.normalize,
                num_frames=config.video.sampling.num_frames,
            ),
            augmentation=None if trial.augmentation is None else config.augmentations[trial.augmentation],
            clip=clip_settings(config),
            clips_per_pass=config.resources.clips_per_pass,
            checkpointing=config.resources.checkpointing,
            num_threads=max(1, int(config.resources.trials.num_cpus)),
        )


def build_encoded(
    part: EncoderPart, task: Task, *, device: torch.device | str, checkpointing: bool = False
) -> EncodedTask:
    """Put an encoder in front of a task, with initial weights of what is trained in it from torch's generator.

    Raises:
        VidflowError: As `build_adapted`; or the frozen weights are not those that the record names.
    """
    if part.adaptation is None:
        encoder, frozen = None, _build_frozen(part, device)
    else:
        encoder = build_adapted(
            part.settings,
            part.adaptation,
            num_frames=part.num_frames,
            depths=list(part.depths),
            normalize=part.normalize,
            device=str(device),
            checkpointing=checkpointing,
        )
        frozen = encoder.frozen
    if part.weights_sha256 not in ("", frozen.weights_sha256):
        raise VidflowError(
            f"encoder.weights: {part.settings.weights} has digest {frozen.weights_sha256[:16]}, wanted "
            f"{part.weights_sha256[:16]}, with which the trial was trained; give it those weights"
        )
    return EncodedTask(encoder, task, frozen=frozen, first_block=part.first_block)


def describe_features(frozen: FrozenEncoder, encoding: Encoding, class_names: list[str]) -> dict[str, Any]:
    """Return the metadata of the features that a trial's task sees, as a feature set would record them."""
    return {
        "class_names": class_names,
        "clip": encoding.clip,
        "num_frames": encoding.part.num_frames,
        "encoder": frozen.describe(),
        "embed_dim": frozen.embed_dim,
        "num_prefix_tokens": frozen.num_prefix_tokens,
        "grid": list(frozen.grid),
        "depths": list(frozen.depths),
    }


def part_values(part: EncoderPart, frozen: FrozenEncoder) -> dict[str, Any]:
    """Return the record of the encoder as plain values, with the digest of its frozen weights."""
    return dataclasses.asdict(dataclasses.replace(part, weights_sha256=frozen.weights_sha256))


def _build_frozen(part: EncoderPart, device: torch.device | str) -> FrozenEncoder:
    return build_encoder(
        **image_settings(part.settings),
        depths=list(part.depths),
        normalize_depths=part.normalize,
        device=str(device),
    )


__all__ = ["EncoderPart", "Encoding", "build_encoded", "describe_features", "part_values"]
