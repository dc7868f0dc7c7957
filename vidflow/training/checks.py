"""Check that the modules of trials can be built, before anything starts; this takes no memory."""

from collections.abc import Iterator, Mapping

import torch

from vidflow.config.encoder import encoder_title
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates, key_of
from vidflow.models.cores.build import build_core
from vidflow.models.tasks import build_task
from vidflow.training.recipe import make_recipe

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
            num_depths=num_depths[trial.features],
            num_classes=_NUM_CLASSES,
            image_size=config.video.size,
        )
        for trial in draw_candidates(config)[0]
    }
    with torch.device("meta"):
        for recipe in sorted(recipes, key=repr):
            try:
                core = build_core(
                    recipe.core, embed_dim=embed_dim, num_layers=recipe.num_layers, num_heads=recipe.num_heads
                )
            except ValueError as error:
                key = key_of(trials, "num_heads")
                yield f"{key}: the core {recipe.core} does not fit {encoder_title(config.encoder)}: {error}"
                continue
            try:
                build_task(recipe.task, core, recipe)
            except ValueError as error:
                yield f"{key_of(trials, 'task')}: {recipe.task} cannot be built: {error}"


__all__ = ["find_module_problems"]
