"""Build a frozen video transformer from its recipe."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import TypeVar

from vidflow.errors import VidflowError
from vidflow.models.encoder.attention import attend, attend_eagerly
from vidflow.models.encoder.build import EncoderDtype, resolve_device, resolve_dtype
from vidflow.models.encoder.video.attentions import Attention
from vidflow.models.encoder.video.cost import ClipShape, tokens_per_block
from vidflow.models.encoder.video.encoder import VideoClassifier, VideoEncoder
from vidflow.models.encoder.video.families import Family, facts_of
from vidflow.models.encoder.video.groups import Groups
from vidflow.models.encoder.video.loaded import LoadedModel, load_video_model
from vidflow.models.encoder.video.recipe import AttentionKind, VideoRecipe
from vidflow.models.encoder.video.self_test import check_against_library
from vidflow.models.encoder.video.walk import ClipWalk
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.build import Reducer

Made = TypeVar("Made", bound=VideoEncoder)

log = logging.getLogger(__name__)


def build_video_encoder(
    recipe: VideoRecipe, *, reduction: Reducer | None = None, device: str = "cpu", dtype: EncoderDtype = "auto"
) -> VideoEncoder:
    """Build a frozen video transformer without its classifier.

    Args:
        recipe: What to build.
        reduction: Bipartite matching in the blocks.
        device: Where to run, such as `cpu`, `cuda` or `cuda:1`.
        dtype: Precision of weights and activations; `auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        VidflowError: The library is missing or computes something else than we know, the weights are not there or do
            not fit, the clip or the reducer does not fit the model, or the device is not available.
    """
    target = resolve_device(device)
    model = load_video_model(recipe, has_head=False, device=target)
    encoder = VideoEncoder(
        recipe=recipe, model=model, walk=_tested_walk(recipe, model), device=target, dtype=resolve_dtype(dtype, target)
    )
    return encoder if reduction is None else with_reduction(encoder, reduction)


def build_video_classifier(
    recipe: VideoRecipe,
    *,
    reduction: Reducer | None = None,
    device: str = "cpu",
    dtype: EncoderDtype = "auto",
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> VideoClassifier:
    """Build a frozen video transformer with its classifier.

    Args:
        recipe: What to build. Random weights have 400 classes unless `settings` has `num_labels` or `id2label`.
        reduction: Bipartite matching in the blocks.
        device: As for `build_video_encoder`.
        dtype: Likewise.
        class_names: Names of the classes of each head, for weights that come without names; None is the checkpoint's.

    Raises:
        VidflowError: As for `build_video_encoder`; or the weights have no classifier, or another number of classes.
    """
    target = resolve_device(device)
    model = load_video_model(recipe, has_head=True, device=target)
    if class_names is not None:
        model = replace(model, class_names=_fitting_names(class_names, model.class_names))
    classifier = VideoClassifier(
        recipe=recipe, model=model, walk=_tested_walk(recipe, model), device=target, dtype=resolve_dtype(dtype, target)
    )
    return classifier if reduction is None else with_reduction(classifier, reduction)


def with_reduction(encoder: Made, reduction: Reducer | None) -> Made:
    """Return the same encoder or classifier, on the same weights, with another reducer.

    Raises:
        VidflowError: The reducer does not fit.
    """
    return encoder.with_walk(
        make_walk(encoder.model, encoder.recipe.family, encoder.recipe.attention, reduction=reduction)
    )


def make_walk(
    model: LoadedModel, family: Family, attention: AttentionKind, *, reduction: Reducer | None = None
) -> ClipWalk:
    """Put a model, its way of attending and a reducer together.

    Raises:
        VidflowError: The reducer does not fit.
    """
    facts, grid = facts_of(family), model.shape.grid
    reducer = None if reduction is None else resolve_reducer(reduction, family, model.shape)
    return ClipWalk(
        backbone=model.backbone,
        attention=Attention(
            kind=facts.walk,
            num_frames=grid[0],
            attend=attend if attention == "fused" else attend_eagerly,
            proportional=reducer is not None and bool(reducer.proportional_attention),
            rotate=model.backbone.rotate,
        ),
        grid=grid,
        groups=Groups(facts.scopes[0] if reducer is None or reducer.scope is None else reducer.scope, grid[0]),
        reducer=reducer,
    )


def resolve_reducer(reduction: Reducer, family: Family, shape: ClipShape) -> BlockBipartite:
    """Check a reducer against a model, and set what it leaves to the published runs; say where it is capped.

    Raises:
        VidflowError: It does not fit.
    """
    if not isinstance(reduction, BlockBipartite):
        raise VidflowError(
            f"{family} reduces tokens in its blocks by tome, drop, hybrid, random_merge or random_drop; got a "
            f"{type(reduction).__name__}"
        )
    facts, proportional = facts_of(family), reduction.proportional_attention
    reducer = replace(
        reduction,
        order=reduction.order or facts.order,
        scope=reduction.scope or facts.scopes[0],
        proportional_attention=facts.proportional_attention if proportional is None else proportional,
    )
    one = shape.group(reducer.scope)
    reducer.check(one, num_frames=1)
    left = [before - after for before, after in pairwise(reducer.tokens_left(one))]
    wanted = reducer.merges(depth=shape.depth, num_patches=one.num_patches)
    if capped := [index for index in range(shape.depth) if left[index] < wanted[index]]:
        group = "clip" if reducer.scope == "clip" else "frame"
        fewer, more = ([series[index] for index in capped] for series in (left, wanted))
        _warn_once(
            f"{family}: blocks {capped} remove {fewer} tokens per {group} instead of {more}, for no block can remove "
            f"more than half; tokens per clip: {tokens_per_block(shape, reducer)}"
        )
    return reducer


@cache
def _warn_once(message: str) -> None:
    """Say something once, however many reducers it is true of: modes and seeds do not change it."""
    log.warning("%s", message)


def _tested_walk(recipe: VideoRecipe, model: LoadedModel) -> ClipWalk:
    walk = make_walk(model, recipe.family, recipe.attention)
    check_against_library(walk, model.geometry, model.shape, name=f"{recipe.family} with weights {recipe.weights!r}")
    return walk


def _fitting_names(
    given: Mapping[str, Sequence[str]], own: Mapping[str, Sequence[str]]
) -> Mapping[str, tuple[str, ...]]:
    got, wanted = ({head: len(names) for head, names in each.items()} for each in (given, own))
    if got != wanted:
        raise VidflowError(f"class_names have {got} names by head; the classifier has {wanted} classes")
    return {head: tuple(names) for head, names in given.items()}


__all__ = ["build_video_classifier", "build_video_encoder", "make_walk", "resolve_reducer", "with_reduction"]
