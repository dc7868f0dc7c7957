"""Count multiply-accumulates of video transformers with token reduction: one function per way of attending.

Norms, softmax, sorting and copying are not counted.

Axes: n patch tokens of a clip, F output frames, N = n / F tokens of a frame, P prefix tokens, D width.

Source: each model's equations; agrees with the counts that their papers publish.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from vidflow.models.encoder.video.families import Family, WalkKind, facts_of
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.macs import VitShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """The numbers of a video transformer that its cost depends on.

    Attributes:
        walk: How attention runs over space and time.
        grid: Output frames, and patches per column and per row of each.
        scopes: Groups of tokens that its reducers can match; the first is the default.
        num_prefix: Class tokens, P.
        depth: Number of blocks.
        embed_dim: Width D.
        num_heads: Attention heads.
        mlp_width: Width within the MLP.
        patch_values: Values of a patch, such as 2 x 16 x 16 x 3.
        head_macs: Weights of the classifier that one token goes through; 0 without a classifier.
        pooler_layers: Attention layers of an attentive classifier over all tokens; None if there is none.
    """

    walk: WalkKind
    grid: tuple[int, int, int]
    scopes: tuple[str, ...]
    num_prefix: int
    depth: int
    embed_dim: int
    num_heads: int
    mlp_width: int
    patch_values: int
    head_macs: int = 0
    pooler_layers: int | None = None

    @property
    def num_patches(self) -> int:
        """Patches of a clip."""
        return math.prod(self.grid)

    def group(self, scope: str | None) -> VitShape:
        """Return the tokens that are matched with one another as an image of their own."""
        frames, rows, columns = self.grid
        is_clip = (scope or self.scopes[0]) == "clip"
        return VitShape(
            depth=self.depth,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            attention_weights=4 * self.embed_dim**2,
            mlp_weights=2 * self.embed_dim * self.mlp_width,
            grid=(frames * rows, columns) if is_clip else (rows, columns),
            num_prefix=self.num_prefix if is_clip else 0,
            patch_values=self.patch_values,
            scopes=self.scopes,
        )


def shape_of(family: Family, settings: Mapping[str, Any], *, num_classes: Sequence[int] = ()) -> ClipShape:
    """Read a model's shape from the settings of its library's configuration.

    Args:
        family: The family of the model.
        settings: The settings, of a preset or of a checkpoint.
        num_classes: Classes of each head; empty for an encoder.
    """
    facts, width = facts_of(family), settings["hidden_size"]
    num_frames, tubelet, side, patch = geometry_of(family, settings)
    is_vjepa = family == "vjepa2"
    head_macs = width * sum(num_classes)
    if num_classes and family == "motionformer":
        head_macs += width**2
    return ClipShape(
        walk=facts.walk,
        grid=(num_frames // tubelet, side // patch, side // patch),
        scopes=facts.scopes,
        num_prefix=facts.num_prefix,
        depth=settings["num_hidden_layers"],
        embed_dim=width,
        num_heads=settings["num_attention_heads"],
        mlp_width=int(width * settings["mlp_ratio"]) if is_vjepa else settings["intermediate_size"],
        patch_values=3 * tubelet * patch**2,
        head_macs=head_macs,
        pooler_layers=settings["num_pooler_layers"] if is_vjepa and num_classes else None,
    )


def geometry_of(family: Family, settings: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return input frames, frames of a tubelet, side of a frame and of a patch in pixels."""
    match family:
        case "vivit":
            tubelet, patch, _ = settings["tubelet_size"]
            return settings["num_frames"], tubelet, settings["image_size"], patch
        case "videomae" | "motionformer":
            return settings["num_frames"], settings["tubelet_size"], settings["image_size"], settings["patch_size"]
        case "timesformer":
            return settings["num_frames"], 1, settings["image_size"], settings["patch_size"]
        case "vjepa2":
            return (
                settings["frames_per_clip"], settings["tubelet_size"], settings["crop_size"], settings["patch_size"]
            )  # fmt: skip
        case _:
            assert_never(family)


def tokens_per_block(shape: ClipShape, reducer: BlockBipartite | None) -> list[int]:
    """Return the patch tokens of a clip before the first block and after each."""
    if reducer is None:
        return [shape.num_patches] * (shape.depth + 1)
    group = shape.group(reducer.scope)
    return [shape.num_patches // group.num_patches * left for left in reducer.tokens_left(group)]


def count_macs(shape: ClipShape, reducer: BlockBipartite | None) -> int:
    """Count one clip: patch embedding, blocks with matching, classifier."""
    tokens = tokens_per_block(shape, reducer)
    total = shape.num_patches * shape.patch_values * shape.embed_dim + shape.head_macs
    for before, after in itertools.pairwise(tokens):
        total += _block_macs(shape, before, after)
        if reducer is not None and after < before and not reducer.is_random:
            total += _matching_macs(shape, reducer, before)
    return total + _pooler_macs(shape, tokens[-1])


def _block_macs(shape: ClipShape, before: int, after: int) -> int:
    """Count one block that `before` patch tokens enter and `after` leave; reduction is in front of its MLP."""
    mlp = 2 * (after + shape.num_prefix) * shape.embed_dim * shape.mlp_width
    match shape.walk:
        case "joint":
            return joint_macs(shape, before) + mlp
        case "divided":
            return divided_macs(shape, before) + mlp
        case "trajectory":
            return trajectory_macs(shape, before) + mlp
        case _:
            assert_never(shape.walk)


def joint_macs(shape: ClipShape, num_patches: int) -> int:
    """Count attention over all tokens: four projections, two products of all pairs."""
    tokens, width = num_patches + shape.num_prefix, shape.embed_dim
    return 4 * tokens * width**2 + 2 * tokens**2 * width


def divided_macs(shape: ClipShape, num_patches: int) -> int:
    """Count attention over time (with one more projection), then over each frame with its copy of the class token."""
    frames, width, prefix = shape.grid[0], shape.embed_dim, shape.num_prefix
    spatial = num_patches + frames * prefix
    over_time = 5 * num_patches * width**2 + 2 * num_patches * frames * width
    return over_time + 4 * spatial * width**2 + 2 * spatial * (num_patches // frames + prefix) * width


def trajectory_macs(shape: ClipShape, num_patches: int) -> int:
    """Count attention within frames, the projections of every trajectory's points, and attention along trajectories."""
    frames, width, prefix = shape.grid[0], shape.embed_dim, shape.num_prefix
    tokens = num_patches + prefix
    within = 4 * tokens * width**2 + 2 * num_patches**2 * width + 2 * prefix * tokens * width
    projections = num_patches * width**2 + 2 * num_patches * frames * width**2
    return within + projections + 2 * num_patches * frames * width


def _matching_macs(shape: ClipShape, reducer: BlockBipartite, num_patches: int) -> int:
    """Count the comparison of one half of each group with the other."""
    group = shape.group(reducer.scope)
    num_groups = shape.num_patches // group.num_patches
    tokens, first = num_patches // num_groups, group.num_prefix % 2
    is_wide = reducer.metric == "tokens" or reducer.head_pooling == "concat"
    channels = shape.embed_dim // (1 if is_wide else shape.num_heads)
    return num_groups * ((tokens - first + 1) // 2) * ((tokens + first) // 2) * channels


def _pooler_macs(shape: ClipShape, num_tokens: int) -> int:
    """Count an attentive classifier: layers over all tokens, then one query on them, without an output projection."""
    if shape.pooler_layers is None:
        return 0
    width = shape.embed_dim
    layer = num_tokens * (4 + 8) * width**2 + 2 * num_tokens**2 * width
    query = (2 * num_tokens + 1) * width**2 + 2 * num_tokens * width + 8 * width**2
    return shape.pooler_layers * layer + query


__all__ = [
    "ClipShape",
    "count_macs",
    "divided_macs",
    "geometry_of",
    "joint_macs",
    "shape_of",
    "tokens_per_block",
    "trajectory_macs",
]
