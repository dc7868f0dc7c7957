"""What a feature set costs: multiply-accumulates of its encoder, tokens per frame, worker seconds, bytes.

Axes: F frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vidflow.config.schema import Adaptation, Config, Encoder, FeatureSet, Trial
from vidflow.models.encoder import resolve_depths, shape_of, skeleton
from vidflow.models.encoder.adapted.cost import count_adapted_macs
from vidflow.models.encoder.checks import frames_left, merged_layers
from vidflow.models.encoder.configured import video_recipe
from vidflow.models.encoder.video.build import resolve_reducer
from vidflow.models.encoder.video.cost import count_macs as count_clip_macs
from vidflow.models.encoder.video.loaded import outline_of
from vidflow.models.reduction.build import PostReducer, Reducer, build_reducer
from vidflow.models.reduction.macs import VitShape, count_macs
from vidflow.records import StageManifest
from vidflow.spread import spread
from vidflow.stages.scanned_rows import SQUARES
from vidflow.store.features import FeatureReader

_COUNTED_CLIPS = 256
# (14 + 14 + 2) / 12, in D^2 per token.
_TRAINING_PASSES = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCost:
    """One feature set and what it costs.

    Attributes:
        name: Its name.
        reducer: Its reducer and settings, in words.
        is_reduced: Whether it has a reducer.
        is_random: Whether that reducer chooses tokens at random.
        tokens_per_frame: Mean number of tokens kept per frame at the last tapped depth.
        gflops_per_frame: GFLOPs of the encoder, two FLOPs per multiply-accumulate; None if the record does not tell.
        seconds_per_clip: Worker seconds from shard to features, including those of the dense features if it needs them.
        bytes_per_clip: Size on disk.
    """

    name: str
    reducer: str
    is_reduced: bool
    is_random: bool
    tokens_per_frame: float
    gflops_per_frame: float | None
    seconds_per_clip: float
    bytes_per_clip: float


def read_cost(
    name: str,
    *,
    directory: Path,
    manifest: StageManifest,
    dense: StageManifest | None,
    encoder: Encoder,
    features: FeatureSet,
) -> FeatureCost:
    """Return the cost of a finished feature set.

    Args:
        name: Its name.
        directory: Its folder.
        manifest: Its manifest.
        dense: Manifest of the features that it was made from; None if it was made by the encoder.
        encoder: The encoder.
        features: Tapped depths and the reducer.

    Raises:
        VidflowError: If the feature set is not finished.
    """
    reader = FeatureReader(directory)
    counts = sample_counts(reader)
    reducer = features.reducer
    made = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
    macs = frame_macs(encoder, features, counts, reader.metadata)
    num_clips = max(1, len(reader))
    return FeatureCost(
        name=name,
        reducer=describe_reducer(reducer.name, reducer.place, reducer.settings),
        is_reduced=made is not None,
        is_random=made is not None and made.is_random,
        tokens_per_frame=float(counts.mean()),
        gflops_per_frame=None if macs is None else 2 * macs / 1e9,
        seconds_per_clip=(manifest.worker_seconds + (dense.worker_seconds if dense else 0.0)) / num_clips,
        bytes_per_clip=manifest.num_bytes / num_clips,
    )


def sample_counts(reader: FeatureReader) -> Int[np.ndarray, " F"]:
    """Return the number of tokens kept per frame at the last tapped depth, for clips spread evenly over the set."""
    return np.concatenate([reader[int(index)].counts[:, -1] for index in spread(len(reader), _COUNTED_CLIPS)])


def describe_reducer(name: str, place: str | None, settings: Mapping[str, Any]) -> str:
    """Return a reducer on one line, such as `tome, num_merged [9, 9]`."""
    words = [name, *([f"place {place}"] if place else []), *(f"{key} {value}" for key, value in settings.items())]
    return ", ".join(words)


def frame_macs(
    encoder: Encoder, features: FeatureSet, counts: Int[np.ndarray, " F"], metadata: Mapping[str, Any]
) -> float | None:
    """Return the mean multiply-accumulates that an encoder spends on an input frame.

    Args:
        encoder: The encoder.
        features: Tapped depths and the reducer.
        counts: As for `encoder_macs`.
        metadata: That of the feature set; merged InTI layers are in it.

    Returns:
        The mean, or None if it cannot be computed from the counts.
    """
    reducer = features.reducer
    made = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
    if encoder.family == "image":
        shape = shape_of(skeleton(encoder.name, encoder.img_size))
        if after := metadata["encoder"].get("clip_parts", {}).get("interpolate_after"):
            # Beside these layers, tokens are reduced behind the encoder only.
            layers, last = _only_layers(after), resolve_depths(features.depths, num_blocks=shape.depth)[-1]
            num_frames = int(metadata["num_frames"])
            return count_adapted_macs(shape, layers, num_frames=num_frames, last=last) / num_frames
        return encoder_macs(shape, made, depths=features.depths, counts=counts)
    recipe = video_recipe(encoder)
    geometry, clip = outline_of(recipe)
    in_blocks = None if made is None or isinstance(made, PostReducer) else resolve_reducer(made, recipe.family, clip)
    return count_clip_macs(clip, in_blocks) / geometry.num_frames


def _only_layers(after: Sequence[int]) -> Adaptation:
    """Return what InTI layers behind these blocks cost as an adaptation; merged adapters cost nothing."""
    return Adaptation(places=[], interpolate_after=list(after))


class TokenSizes(NamedTuple):
    """Output frames of a clip without adaptation, patches and prefix tokens of each, and the width of a token."""

    num_frames: int
    num_patches: int
    num_prefix: int
    embed_dim: int


def token_sizes(config: Config) -> TokenSizes:
    """Return the sizes of the encoder's tokens, without token reduction."""
    if config.encoder.family == "image":
        shape = shape_of(skeleton(config.encoder.name, config.encoder.img_size))
        return TokenSizes(frames_left(config), shape.num_patches, shape.num_prefix, shape.embed_dim)
    geometry, clip = outline_of(video_recipe(config.encoder))
    num_frames, num_patches = config.video.sampling.num_frames // geometry.tubelet, clip.num_patches // clip.grid[0]
    return TokenSizes(num_frames, num_patches, clip.num_prefix, clip.embed_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialMacs:
    """Multiply-accumulates of the encoder within a trial, per clip.

    Attributes:
        forward: Of a validation clip, with merged adapters.
        training: Of a training clip, with gradients.
        clips_per_video: Clips of a validation video.
    """

    forward: float
    training: float
    clips_per_video: int = 1


def trial_macs(config: Config, trial: Trial) -> TrialMacs | None:
    """Return what the encoder takes within a trial; None if it does not run there.

    In training, adapted blocks take 2.5 times their forward pass: 12 D^2 per token and 2 D^2 of the adapters, as much
    for the gradients of the inputs, and 2 D^2 for those of the adapters. With checkpointing they run once more.
    """
    if trial.feed == "features":
        return None
    shape = shape_of(skeleton(config.encoder.name, config.encoder.img_size))
    adaptation = None if trial.adaptation is None else config.adaptations[trial.adaptation]
    depths = config.features[trial.features].depths
    last = shape.depth - 1 if trial.feed == "prefix" else resolve_depths(depths, num_blocks=shape.depth)[-1]
    num_frames = config.video.sampling.num_frames

    def macs_up_to(block: int) -> int:
        added = adaptation or _only_layers(merged_layers(config))
        return count_adapted_macs(shape, added, num_frames=num_frames, last=block)

    # The stream that enters block k is stored after block k - 1.
    stored = macs_up_to(resolve_depths(depths, num_blocks=shape.depth)[0]) if trial.feed == "prefix" else 0
    forward = macs_up_to(last) - stored
    sampling = config.video.sampling
    clips_per_video = (sampling.num_clips if sampling.mode == "spread" else 1) * (
        len(SQUARES) if config.plain_split else 1
    )
    if adaptation is None:
        return TrialMacs(forward=forward, training=forward, clips_per_video=clips_per_video)
    adapted = macs_up_to(last) - macs_up_to(adaptation.first_block - 1)
    passes = _TRAINING_PASSES + config.resources.checkpointing
    training = forward - adapted + passes * adapted
    return TrialMacs(forward=forward, training=training, clips_per_video=clips_per_video)


def encoder_macs(
    shape: VitShape, reducer: Reducer | None, *, depths: Sequence[int], counts: Int[np.ndarray, " F"]
) -> float | None:
    """Return the mean multiply-accumulates that the encoder spends on a frame, up to the last tapped block.

    Args:
        shape: The encoder with all its blocks.
        reducer: The token reducer; None if tokens are not reduced.
        depths: Tapped blocks; no block after the last of them runs.
        counts: Tokens kept per frame of a sample; needed for reducers that decide by content.

    Returns:
        The mean, or None if the reducer cannot compute it from the counts.
    """
    num_blocks = resolve_depths(depths, num_blocks=shape.depth)[-1] + 1
    if reducer is None:
        return count_macs(shape, [shape.num_patches] * (num_blocks + 1))
    return reducer.macs(shape, num_blocks=num_blocks, counts=counts)
