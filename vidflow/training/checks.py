"""Check that the modules of trials can be built, before anything starts; this takes no memory."""

from collections.abc import Iterator, Mapping

import torch

from vidflow.config.encoder import encoder_title
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates, key_of
from vidflow.models.encoder import resolve_depths, skeleton
from vidflow.models.encoder.adapted import adaptation_problems
from vidflow.models.tasks import build_task
from vidflow.training.recipe import build_recipe_core, make_recipe

# The number of classes decides no shape that could be wrong.
_NUM_CLASSES = 2


def find_module_problems(config: Config, *, embed_dim: int, num_depths: Mapping[str, int]) -> Iterator[str]:
    """Yield what is wrong with cores, depth mixing and readouts of all candidates.

    Args:
        config: The experiment.
        embed_dim: Width of the encoder's tokens.
        num_depths: Tapped depths of each feature set.
    """
    trials = config.trials
    recipes = {
        make_recipe(
            trial,
            embed_dim=embed_dim,
            num_depths=1 if trial.feed == "prefix" else num_depths[trial.features],
            num_classes=_NUM_CLASSES,
            image_size=config.video.size,
        )
        for trial in draw_candidates(config)[0]
    }
    with torch.device("meta"):
        for recipe in sorted(recipes, key=repr):
            try:
                core = build_recipe_core(recipe)
            except ValueError as error:
                key = key_of(trials, "num_heads")
                yield f"{key}: the core {recipe.core} does not fit {encoder_title(config.encoder)}: {error}"
                continue
            try:
                build_task(recipe.task, core, recipe)
            except ValueError as error:
                yield f"{key_of(trials, 'task')}: {recipe.task} cannot be built: {error}"


def find_group_problems(config: Config, *, num_frames: int) -> Iterator[str]:
    """Yield which groups of VTM do not divide the frames of a clip.

    Args:
        config: The experiment.
        num_frames: Frames of a clip behind the encoder, without adaptation.
    """
    for trial in draw_candidates(config)[0]:
        features = config.features[trial.features]
        is_whole = trial.unmerge or features.reducer.name == "none"
        if trial.core != "vtm" or trial.vtm_groups is None or not is_whole:
            continue
        adaptation = None if trial.adaptation is None else config.adaptations[trial.adaptation]
        halvings = 0 if adaptation is None else len(adaptation.interpolate_after)
        seen = -(-num_frames // 2**halvings)
        if seen % trial.vtm_groups[-1]:
            yield (
                f"{key_of(config.trials, 'vtm_groups')}: got {list(trial.vtm_groups)} for clips of {seen} frames; "
                f"wanted a last group that divides {seen}"
            )


def find_encoding_problems(config: Config) -> Iterator[str]:
    """Yield what of adaptations, and of feature sets that stored streams come from, does not fit the encoder."""
    vit = skeleton(config.encoder.name)
    num_blocks = len(vit.blocks)
    for trial in draw_candidates(config)[0]:
        if trial.adaptation is None:
            continue
        adaptation, name = config.adaptations[trial.adaptation], trial.adaptation
        depths = config.features[trial.features].depths
        tapped = [-1] if trial.feed == "prefix" else depths
        yield from (f"adaptations.{name}.{each}" for each in adaptation_problems(vit, adaptation, depths=tapped))
        if trial.feed == "prefix":
            entered = resolve_depths(depths, num_blocks=num_blocks)[0] + 1
            if entered > adaptation.first_block:
                yield (
                    f"adaptations.{name}.first_block: got {adaptation.first_block}, wanted {entered} at least: "
                    f"features {trial.features!r} store the output of block {entered - 1}, so no block up to it runs"
                )


__all__ = ["find_encoding_problems", "find_group_problems", "find_module_problems"]
