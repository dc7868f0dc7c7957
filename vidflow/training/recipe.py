"""The recipe of a trial's module, and the module that is built from it."""

from dataclasses import dataclass

from vidflow.config.schema import CoreName, Trial
from vidflow.config.tasks import TaskName, count_visible, facts_of
from vidflow.models.cores.build import TemporalCore, VtmSettings, build_core
from vidflow.models.tasks import Task, TaskOptions, build_task
from vidflow.store.features import FeatureReader
from vidflow.training.batches import read_annotations
from vidflow.training.feeds import Clips


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecipe(TaskOptions):
    """Everything that decides a module's shape, as a trial's files store it.

    Attributes:
        task: The task.
        core: Temporal core.
        embed_dim: Width of the tokens.
        num_layers: Layers of the core.
        num_heads: Attention heads of the core; None is the published number for the width.
        vtm_groups: Frames of a group in the blocks of VTM; None: fitted to the clip.
        vtm_factor: One of how many tokens VTM leaves.
        vtm_share: Share of the other tokens that VTM merges.
    """

    task: TaskName
    core: CoreName
    embed_dim: int
    num_layers: int
    num_heads: int | None
    vtm_groups: tuple[int, ...] | None = None
    vtm_factor: int = 6
    vtm_share: float = 1.0


def module_recipe(trial: Trial, reader: FeatureReader) -> ModuleRecipe:
    """Return the recipe of the module of a trial on these features.

    Raises:
        ValueError: The trial reads the class token, and the features have none; or it hides all frames or none.
    """
    metadata = reader.metadata
    if reads_class_token(trial) and not metadata["num_prefix_tokens"]:
        raise ValueError("readout `class_token` on features without a class token; use `attention`")
    if facts_of(trial.task).hides_frames:
        num_frames = len(reader[0].counts)  # a video encoder gives fewer than it takes
        if not 0 < (visible := count_visible(num_frames, trial.mask_ratio)) < num_frames:
            raise ValueError(f"mask_ratio {trial.mask_ratio} leaves {visible} of {num_frames} frames visible")
    return make_recipe(
        trial,
        embed_dim=metadata["embed_dim"],
        num_depths=len(metadata["depths"]),
        num_classes=len(metadata["class_names"]),
        image_size=depth_size(reader) if "depth" in facts_of(trial.task).annotations else 0,
    )


def make_recipe(trial: Trial, *, embed_dim: int, num_depths: int, num_classes: int, image_size: int) -> ModuleRecipe:
    """Return the recipe of the module of a trial.

    Args:
        trial: The trial.
        embed_dim: Width of the tokens.
        num_depths: Number of tapped depths.
        num_classes: Number of classes; used by tasks with labels only.
        image_size: Side of the depth maps in pixels; used by tasks that predict depth only.
    """
    facts = facts_of(trial.task)
    return ModuleRecipe(
        task=trial.task,
        core=trial.core,
        embed_dim=embed_dim,
        num_layers=trial.num_layers,
        num_heads=trial.num_heads,
        num_depths=num_depths if trial.mix_depths else 1,
        num_classes=num_classes if facts.needs_labels else None,
        image_size=image_size if "depth" in facts.annotations else 0,
        class_token=trial.readout == "class_token",
        readout_dim=trial.readout_dim,
        readout_heads=trial.readout_heads,
        every_frame_weight=trial.every_frame_weight,
        label_smoothing=trial.label_smoothing,
        standardize=trial.standardize,
        unmerge=trial.unmerge,
        mask_ratio=trial.mask_ratio,
        mask_choice=trial.mask_choice,
        mask_loss=trial.mask_loss,
        adapter_rank=max(1, int(trial.token_adapter * embed_dim)) if trial.token_adapter else 0,
        vtm_groups=trial.vtm_groups,
        vtm_factor=trial.vtm_factor,
        vtm_share=trial.vtm_share,
    )


def build_module(recipe: ModuleRecipe) -> Task:
    """Build the module that a trial trains: depth mixing, core and readout.

    Raises:
        ValueError: If the width and the number of heads do not fit.
    """
    return build_task(recipe.task, build_recipe_core(recipe), recipe)


def build_recipe_core(recipe: ModuleRecipe) -> TemporalCore:
    """Build the core alone.

    Raises:
        ValueError: If the width and the number of heads do not fit.
    """
    # A list if the recipe comes from a file.
    groups = None if recipe.vtm_groups is None else tuple(recipe.vtm_groups)
    return build_core(
        recipe.core,
        embed_dim=recipe.embed_dim,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        vtm=VtmSettings(groups=groups, factor=recipe.vtm_factor, share=recipe.vtm_share),
    )


def reads_class_token(trial: Trial) -> bool:
    """Whether a trial reads a class token of the encoder; the only token behind VTM is its own."""
    return trial.readout == "class_token" and trial.core != "vtm"


def depth_size(clips: Clips) -> int:
    """Return the side of the first clip's depth maps, in pixels."""
    return int(read_annotations(clips[0], ["depth"])["depth"].shape[-1])
