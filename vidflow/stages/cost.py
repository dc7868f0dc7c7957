"""What a feature set costs: multiply-accumulates of its encoder, tokens per frame, worker seconds, bytes.

Axes: F frames, N patch tokens, P prefix tokens, D embedding width.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vidflow.models.encoder import resolve_depths, shape_of, skeleton
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.build import Reducer, build_reducer
from vidflow.models.reduction.controls import InputLowerResolution
from vidflow.models.reduction.macs import VitShape, count_macs, count_tokens
from vidflow.models.reduction.saliency import BlockSaliency
from vidflow.models.reduction.windows import BlockWindows
from vidflow.store.features import FeatureReader
from vidflow.store.layout import read_stage

RANDOM_REDUCERS = ("random", "random_merge", "random_drop")
"""Controls that choose by chance."""
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
    macs = encoder_macs(shape_of(skeleton(encoder, img_size)), made, depths=depths, img_size=img_size, counts=counts)
    num_clips = max(1, len(reader))
    return FeatureCost(
        name=name,
        reducer=describe_reducer(reducer, place, settings),
        is_reduced=made is not None,
        is_random=reducer in RANDOM_REDUCERS,
        tokens_per_frame=float(counts.mean()),
        gflops_per_frame=None if macs is None else 2 * macs / 1e9,
        seconds_per_clip=(manifest["seconds"] + before.get("seconds", 0.0)) / num_clips,
        bytes_per_clip=manifest["num_bytes"] / num_clips,
    )


def sample_counts(reader: FeatureReader) -> Int[np.ndarray, " F"]:
    """Return the tokens kept of each frame at the last tapped depth, of clips spread evenly over the set."""
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(len(reader), _COUNTED_CLIPS)).round().astype(int))
    return np.concatenate([reader[int(index)].counts[:, -1] for index in chosen])


def describe_reducer(name: str, place: str | None, settings: Mapping[str, Any]) -> str:
    """Return a reducer on one line, such as `tome, num_merged [9, 9]`."""
    words = [name, *([f"place {place}"] if place else []), *(f"{key} {value}" for key, value in settings.items())]
    return ", ".join(words)


def encoder_macs(
    shape: VitShape,
    reducer: Reducer | None,
    *,
    depths: Sequence[int],
    img_size: int,
    counts: Int[np.ndarray, " F"],
) -> float | None:
    """Return the mean multiply-accumulates that the encoder spends on a frame, up to the last tapped block.

    Norms, softmax, sorting and moving are not counted. Of a reducer for cached tokens this is the cost of the dense
    features.

    Args:
        shape: The encoder with all its blocks.
        reducer: What reduces tokens; None is nothing.
        depths: Tapped blocks; the last of them is the last that runs.
        img_size: Side of a frame in pixels.
        counts: Tokens kept of each frame of a sample; wanted by reducers that decide by content.

    Returns:
        The mean, or None where the counts between two adaptive steps would be needed.
    """
    num_blocks = resolve_depths(depths, num_blocks=shape.depth)[-1] + 1
    if reducer is None or reducer.place == "post":
        return count_macs(shape, [shape.num_patches] * (num_blocks + 1))
    if isinstance(reducer, InputLowerResolution):
        side = shape.grid[0]
        small = reducer.img_size(img_size, patch_size=img_size // side) // (img_size // side)
        shape = replace(shape, grid=(small, small))
        return count_macs(shape, [shape.num_patches] * (num_blocks + 1))
    if reducer.place == "input":
        # A frame of which nothing is kept is not encoded.
        values, frequencies = np.unique(counts, return_counts=True)
        total = sum(
            int(n) * count_macs(shape, [int(v)] * (num_blocks + 1))
            for v, n in zip(values, frequencies, strict=True)
            if v
        )
        return total / len(counts)
    match reducer:
        case BlockBipartite():
            merges = reducer.merges(depth=shape.depth, num_patches=shape.num_patches)[:num_blocks]
            channels = shape.embed_dim // (1 if _compares_rows(reducer) else shape.num_heads)
            return count_macs(
                shape, count_tokens(shape.num_patches, merges), channels=0 if reducer.needs_seeds else channels
            )
        case BlockSaliency():
            merges = [*reducer.num_merged, *[0] * shape.depth][:num_blocks]
            tokens = count_tokens(shape.num_patches, merges)
            return count_macs(shape, tokens, channels=shape.embed_dim) + _explicit_attention(shape, tokens)
        case BlockWindows(global_threshold=None):
            left = round(float(counts.mean()))
            tokens_left = [shape.num_patches] * (reducer.local_block + 1) + [left] * num_blocks
            return count_macs(shape, tokens_left[: num_blocks + 1]) + shape.num_patches * shape.embed_dim
        case _:
            return None


def _compares_rows(reducer: BlockBipartite) -> bool:
    return reducer.metric == "tokens" or reducer.head_pooling == "concat"


def _explicit_attention(shape: VitShape, tokens: Sequence[int]) -> int:
    """Count the attention weights that are computed beside the fused kernel in the reducing blocks."""
    reducing = [before for before, after in itertools.pairwise(tokens) if after < before]
    return sum(before * (before + shape.num_prefix) * shape.embed_dim for before in reducing)
