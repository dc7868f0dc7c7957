"""The grid of an evaluation: which models are run with which token reduction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from vidflow.config.schema import Config, Evaluate, VideoModel
from vidflow.errors import ConfigError
from vidflow.models.encoder.video.build import resolve_reducer
from vidflow.models.encoder.video.cost import ClipShape, count_macs, tokens_per_block
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.build import build_reducer

PointMode = Literal["none", "merge", "drop", "hybrid", "random_merge", "random_drop"]
RANDOM: tuple[PointMode, ...] = ("random_merge", "random_drop")
# Settings of a reducer that an axis decides.
_AXES = ("num_merged", "mode", "schedule", "seed", "keep", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """One model with one token reduction.

    Attributes:
        model: Name of the model.
        r: Tokens removed per block on average.
        mode: What happens to removed tokens; `none` for r = 0.
        schedule: How removal is spread over the blocks.
        seed: Seed of a random mode; 0 for others.
    """

    model: str
    r: int = 0
    mode: PointMode = "none"
    schedule: Literal["constant", "decreasing", "increasing"] = "constant"
    seed: int = 0

    @property
    def is_baseline(self) -> bool:
        """Whether no token is removed."""
        return self.mode == "none"

    @property
    def label(self) -> str:
        """The point on one line, without its model."""
        if self.is_baseline:
            return "r=0"
        seed = f" seed {self.seed}" if self.mode in RANDOM else ""
        return f"r={self.r} {self.mode.replace('_', ' ')} {self.schedule}{seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointCost:
    """What a point costs per clip.

    Attributes:
        macs: Multiply-accumulates, with matching and the classifier.
        tokens: Patch tokens before the first block and after each.
    """

    macs: int
    tokens: tuple[int, ...]


def list_points(evaluate: Evaluate) -> list[Point]:
    """Return the points of all models, model by model, each first with r = 0; equal points are one."""
    points: dict[Point, None] = {}
    for name, model in evaluate.models.items():
        axes = evaluate.axes
        points[Point(model=name)] = None
        for mode, schedule, r in product(axes.mode, axes.schedule, axes.r if model.r is None else model.r):
            for seed in axes.seed if mode in RANDOM else [0]:
                if r:
                    points[Point(model=name, r=r, mode=mode, schedule=schedule, seed=seed)] = None
    return list(points)


def reduction_of(point: Point, model: VideoModel) -> BlockBipartite | None:
    """Return the reducer of a point, as set.

    Raises:
        ConfigError: If the model's reducer settings name an axis.
        VidflowError: If they are not settings of the reducer.
    """
    if taken := [key for key in model.reducer if key in _AXES]:
        raise ConfigError(
            f"evaluate.models.{point.model}.reducer: got {', '.join(taken)}; evaluate.axes and `r` decide these"
        )
    if point.is_baseline:
        return None
    others = {key: value for key, value in model.reducer.items() if key != "threshold" or point.mode == "hybrid"}
    made = build_reducer(
        "tome" if point.mode == "merge" else point.mode,
        place="block",
        num_merged=point.r,
        schedule=point.schedule,
        seed=point.seed,
        **others,
    )
    assert isinstance(made, BlockBipartite)
    return made


def cost_of(point: Point, model: VideoModel, shape: ClipShape) -> PointCost:
    """Count what a point costs.

    Raises:
        VidflowError: If the reducer does not fit the model.
    """
    reduction = reduction_of(point, model)
    resolved = None if reduction is None else resolve_reducer(reduction, model.family, shape)
    return PointCost(macs=count_macs(shape, resolved), tokens=tuple(tokens_per_block(shape, resolved)))


def recipe_of(config: Config, name: str, labels: Sequence[str] = ()) -> VideoRecipe:
    """Return what to build a model from.

    Args:
        config: The experiment.
        name: Name of the model.
        labels: Labels of the manifest, which are the classes of random weights.
    """
    model = config.evaluate.models[name]
    settings: dict[str, object] = dict(model.settings)
    if model.weights.startswith("random:") and labels and model.family == "motionformer":
        settings["num_labels"] = len(labels)
    elif model.weights.startswith("random:") and labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    return VideoRecipe(
        family=model.family,
        weights=model.weights,
        size=model.size,
        settings=settings,
        attention=config.evaluate.attention,
        fps=model.fps,
    )


def group_seeds(points: Sequence[Point]) -> Mapping[Point, list[Point]]:
    """Return the points that differ only in their seed, under the first of them."""
    groups: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        groups.setdefault((point.model, point.r, point.mode, point.schedule), []).append(point)
    return {group[0]: group for group in groups.values()}


__all__ = [
    "RANDOM",
    "Point",
    "PointCost",
    "PointMode",
    "cost_of",
    "group_seeds",
    "list_points",
    "recipe_of",
    "reduction_of",
]
