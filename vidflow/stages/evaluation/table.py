"""Tables of an evaluation for a terminal: the points beforehand, and their scores afterwards."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vidflow.config.schema import Config
from vidflow.errors import VidflowError
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.outline import ClassifierOutline, classifier_outline
from vidflow.stages.evaluation.models import ReadyModel
from vidflow.stages.evaluation.points import cost_of, list_points, recipe_of
from vidflow.stages.evaluation.results import ModelResult, PointResult


def points_table(config: Config, labels: Sequence[str]) -> Iterator[str]:
    """Yield a line per point with its cost, from configurations alone.

    Args:
        config: The experiment.
        labels: Labels of the manifest, if there is one yet.
    """
    evaluate = config.evaluate
    points = list_points(evaluate)
    count = len(evaluate.models)
    yield f"{len(points)} points of {count} models on split {evaluate.split}, protocol {evaluate.protocol}"
    for name, model in evaluate.models.items():
        outline, note = _outline(config, name, labels)
        yield ""
        yield f"{name}: {model.family}, {model.weights}, {_clip(outline.geometry)}{note}"
        yield f"  {'point':<38} {'GMACs':>9} {'times fewer':>12}  tokens before the first block and after each"
        before = 0
        for point in (point for point in points if point.model == name):
            cost = cost_of(point, model, outline.shape)
            before = before or cost.macs
            tokens = " ".join(map(str, cost.tokens))
            yield f"  {point.label:<38} {cost.macs / 1e9:>9.4g} {before / cost.macs:>12.2f}  {tokens}"


def results_table(results: Sequence[ModelResult]) -> Iterator[str]:
    """Yield a line per point with its scores."""
    for result in results:
        yield ""
        yield f"{result.name}: {result.about}"
        if result.num_padded:
            yield (
                f"  {result.num_padded} of {result.num_clips} clips are of videos shorter than the clip; their last "
                "frame is repeated"
            )
        yield (
            f"  {'point':<38} {'head':<7} {'top-1':>7} {'95 %':>14} {'top-5':>7} {'to r=0':>7} {'95 %':>14} {'p':>8} "
            f"{'GMACs':>8} {'clips/s':>8} {'matching':>8}"
        )
        for measured in result.points:
            yield from _lines(measured)


def describe_model(model: ReadyModel) -> str:
    """Return what a model is, in words."""
    recipe = model.setup.recipe
    return f"{recipe.family}, {recipe.weights}, {_clip(model.setup.geometry)}, {recipe.attention} attention"


def _clip(geometry: ClipGeometry) -> str:
    return f"{geometry.num_frames} x {geometry.img_size} x {geometry.img_size} pixels"


def _lines(measured: PointResult) -> Iterator[str]:
    for number, score in enumerate(measured.scores):
        change, top5 = score.change, score.top5
        cost = (
            f"{measured.cost.macs / 1e9:>8.4g} {_number(measured.clips_per_second):>8} "
            f"{_percent(measured.matching_share):>8}"
        )
        yield (
            f"  {measured.point.label if not number else '':<38} {score.head:<7} {100 * score.top1.value:>7.2f} "
            f"{_range(score.top1.low, score.top1.high):>14} {'' if top5 is None else f'{100 * top5.value:.2f}':>7} "
            f"{'' if change is None else f'{100 * change.top1.value:+.2f}':>7} "
            f"{'' if change is None else _range(change.top1.low, change.top1.high):>14} "
            f"{'' if change is None else f'{change.p:.2g}':>8} {cost if not number else ''}"
        ).rstrip()


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _outline(config: Config, name: str, labels: Sequence[str]) -> tuple[ClassifierOutline, str]:
    """Return a model's outline; without its own configuration, that of its size."""
    recipe = recipe_of(config, name, labels)
    try:
        return classifier_outline(recipe), ""
    except VidflowError:
        if recipe.weights.startswith("random:"):
            raise
        size = recipe.size or "its usual size"
        return classifier_outline(
            replace(recipe, weights="random:0")
        ), f" (the weights are not here; costs are of {size})"


__all__ = ["describe_model", "points_table", "results_table"]
