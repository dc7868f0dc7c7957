"""What the core of a trial takes: counted for what the settings of a trial make cheaper or dearer, VTM and the adapter.

The seconds of a step are measured, see `measure`; this says where they come from.
"""

from dataclasses import dataclass

import torch

from vidflow.config.schema import Config, Trial
from vidflow.models.cores.vtm import VtmCore
from vidflow.stages.cost import token_sizes
from vidflow.training.recipe import build_module, make_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMacs:
    """Multiply-accumulates of a validation clip.

    Attributes:
        vtm: Of the core VTM; None for other cores, which are not counted.
        vtm_tokens: Tokens of a clip that enter it, and that are left behind its last block.
        adapter: Of the adapter in front of the core; 0 if there is none.
    """

    vtm: int | None
    vtm_tokens: tuple[int, int]
    adapter: int


def core_macs(config: Config, trial: Trial, *, stored_tokens: float | None) -> CoreMacs | None:
    """Return what VTM and the adapter of a trial take; None if it has neither.

    Args:
        config: The experiment.
        trial: The trial.
        stored_tokens: Patch tokens of a frame as they are stored; None if all patches are seen.
    """
    if trial.core != "vtm" and not trial.token_adapter:
        return None
    sizes = token_sizes(config)
    adaptation = None if trial.adaptation is None else config.adaptations[trial.adaptation]
    num_frames = -(-sizes.num_frames // 2 ** (0 if adaptation is None else len(adaptation.interpolate_after)))
    num_tokens = sizes.num_prefix + (sizes.num_patches if stored_tokens is None else round(stored_tokens))
    # Neither depths nor classes change core and adapter.
    recipe = make_recipe(trial, embed_dim=sizes.embed_dim, num_depths=1, num_classes=2, image_size=config.video.size)
    with torch.device("meta"):
        task = build_module(recipe)
    vtm = task.core if isinstance(task.core, VtmCore) else None
    left = 0
    if vtm is not None:
        left = num_frames // vtm.groups_of(num_frames)[-1] * vtm.tokens_per_group(num_frames, num_tokens)[-1]
    return CoreMacs(
        vtm=None if vtm is None else vtm.macs(num_frames, num_tokens),
        vtm_tokens=(num_frames * num_tokens, left),
        adapter=0 if task.token_adapter is None else task.token_adapter.macs(num_frames * num_tokens),
    )


__all__ = ["CoreMacs", "core_macs"]
