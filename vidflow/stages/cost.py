"""What a feature set costs: multiply-accumulates of its encoder, tokens per frame, worker seconds, bytes.

Axes: F frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vidflow.models.encoder import resolve_depths, shape_of, skeleton
from vidflow.models.reduction.build import Reducer, build_reducer
from vidflow.models.reduction.macs import VitShape, count_macs
from vidflow.spread import spread
from vidflow.store.features import FeatureReader
from vidflow.store.layout import read_stage

_COUNTED_CLIPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCost:
    """One feature set and what it costs.

    Attributes:
        name: Its name.
        reducer: Its reducer and settings, in words.
        is_reduced: Whether it has a reducer.
        is_random: Whether that reducer chooses by chance.
        tokens_per_frame: Mean number of tokens that are kept of a frame, at the last tapped depth.
        gflops_per_frame: Of the encoder, two per multiply-accumulate; None where it depends on what was not recorded.
        seconds_per_clip: Worker seconds from shard to features; those made from dense features include them.
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
    dense: Path,
    encoder: str,
    img_size: int,
    depths: Sequence[int],
    reducer: str,
    place: str | None,
    settings: Mapping[str, Any],
) -> FeatureCost:
    """Return what a finished feature set has cost.

    Args:
        name: Its name.
        directory: Where it lies.
        dense: Where the features lie that it was made from; `directory` itself for one that comes from the encoder.
        encoder: timm's name of the encoder.
        img_size: Side of the encoder's input in pixels.
        depths: Tapped blocks; negative counts from the last.
        reducer: Name of the reducer.
        place: Where it acts; None is the first place it offers.
        settings: Its settings.

    Raises:
        VidflowError: If the feature set is not finished.
    """
    reader = FeatureReader(directory)
    manifest = read_stage(directory) or {}
    before = (read_stage(dense) or {}) if dense != directory else {}
    counts = sample_counts(reader)
    made = build_reducer(reducer, place=place, **settings)
    macs = encoder_macs(shape_of(skeleton(encoder, img_size)), made, depths=depths, counts=counts)
    num_clips = max(1, len(reader))
    return FeatureCost(
        name=name,
        reducer=describe_reducer(reducer, place, settings),
        is_reduced=made is not None,
        is_random=made is not None and made.is_random,
        tokens_per_frame=float(counts.mean()),
        gflops_per_frame=None if macs is None else 2 * macs / 1e9,
        seconds_per_clip=(manifest["worker_seconds"] + before.get("worker_seconds", 0.0)) / num_clips,
        bytes_per_clip=manifest["num_bytes"] / num_clips,
    )


def sample_counts(reader: FeatureReader) -> Int[np.ndarray, " F"]:
    """Return the tokens kept of each frame at the last tapped depth, of clips spread evenly over the set."""
    return np.concatenate([reader[int(index)].counts[:, -1] for index in spread(len(reader), _COUNTED_CLIPS)])


def describe_reducer(name: str, place: str | None, settings: Mapping[str, Any]) -> str:
    """Return a reducer on one line, such as `tome, num_merged [9, 9]`."""
    words = [name, *([f"place {place}"] if place else []), *(f"{key} {value}" for key, value in settings.items())]
    return ", ".join(words)


def encoder_macs(
    shape: VitShape, reducer: Reducer | None, *, depths: Sequence[int], counts: Int[np.ndarray, " F"]
) -> float | None:
    """Return the mean multiply-accumulates that the encoder spends on a frame, up to the last tapped block.

    Args:
        shape: The encoder with all its blocks.
        reducer: What reduces tokens; None is nothing.
        depths: Tapped blocks; the last of them is the last that runs.
        counts: Tokens kept of each frame of a sample; wanted by reducers that decide by content.

    Returns:
        The mean, or None where the reducer cannot tell it from the counts.
    """
    num_blocks = resolve_depths(depths, num_blocks=shape.depth)[-1] + 1
    if reducer is None:
        return count_macs(shape, [shape.num_patches] * (num_blocks + 1))
    return reducer.macs(shape, num_blocks=num_blocks, counts=counts)
