"""The page about an evaluation as one self-contained HTML file."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from vidflow.config.load import config_to_yaml
from vidflow.config.schema import Config, Evaluate
from vidflow.report.evaluation import COST_AXES, SeriesPoint, describe_figure, series_points
from vidflow.report.figures import draw_all
from vidflow.report.figures.evaluation import evaluation_figure
from vidflow.report.page import render
from vidflow.stages.evaluation.results import ModelResult
from vidflow.stages.evaluation.scores import HeadScore

_FRONTS = {"gmacs": "GMACs", "clips_per_second": "clips / s"}


def render_evaluation(
    config: Config, results: Sequence[ModelResult], *, provenance: Mapping[str, str], csv: str
) -> str:
    """Return the page.

    Args:
        config: The experiment.
        results: Its models.
        provenance: What the results depend on.
        csv: Name of the table beside the page.
    """
    evaluate = config.evaluate
    view = {
        "title": f"{config.report.title}: evaluation",
        "models": [_view(result) for result in results],
        "split": evaluate.split,
        "protocol": describe_protocol(evaluate),
        "num_seeds": len(evaluate.axes.seed),
        "notices": list(_notices(config)),
        "provenance": provenance,
        "config_yaml": config_to_yaml(config),
        "csv": csv,
    }
    return render("evaluation.html", view, {})


def describe_protocol(evaluate: Evaluate) -> str:
    """Return which clips were seen, in words."""
    match evaluate.protocol:
        case "centre":
            return "one clip in the middle of the video, central square"
        case "multiview":
            crops = "three squares" if evaluate.three_crops else "the central square"
            return f"{evaluate.num_clips} clips of a video in {crops}, mean of probabilities"
        case "paper":
            return f"clips as in the released configurations for {evaluate.data_set}"


def _notices(config: Config) -> list[str]:
    evaluate = config.evaluate
    notices = [
        f"{name} has seeded random weights ({model.weights}), not pre-trained ones."
        for name, model in evaluate.models.items()
        if model.weights.startswith("random:")
    ]
    if evaluate.fit_head:
        notices.append(
            f"The last layer of every model was fitted on split {evaluate.fit_head} without token reduction; all other "
            "weights are as given."
        )
    return notices


def _view(result: ModelResult) -> dict[str, Any]:
    points, base = series_points(result), result.baseline
    others = [score.head for score in base.scores if score.head != base.main.head]
    return {
        "result": result,
        "base": base,
        "drawing": draw_all(functools.partial(_draw, points, result.name)),
        "text": describe_figure(result, points),
        "heads": others,
        "has_schedules": len({point.point.schedule for point in points[1:]}) > 1,
        "has_top5": base.main.top5 is not None,
        "rows": [_row(point, points[0], others) for point in points],
    }


def _draw(points: Sequence[SeriesPoint], title: str, look: Any) -> bytes:
    return evaluation_figure(points, title=title, look=look)


def _row(point: SeriesPoint, base: SeriesPoint, heads: Sequence[str]) -> dict[str, Any]:
    """Return the cells of a row; of several seeds, means, and the ends of their values for p."""
    mains = [each.main for each in point.seeds]
    changes = [main.change for main in mains if main.change is not None]
    tokens, has_speed = point.seeds[0].cost.tokens, point.clips_per_second and base.clips_per_second
    matching = point.mean_of("matching_share")
    return {
        "mode": point.point.mode.replace("_", " ").replace("none", "no reduction"),
        "schedule": "" if point.point.is_baseline else point.point.schedule,
        "r": point.point.r,
        "top1": f"{100 * point.score:.2f} %",
        "interval": f"{100 * point.low:.1f} to {100 * point.high:.1f} %",
        "change": f"{100 * _mean([change.top1.value for change in changes]):+.2f}" if changes else "",
        "change_interval": (
            f"{100 * min(change.top1.low for change in changes):+.1f} to "
            f"{100 * max(change.top1.high for change in changes):+.1f}"
            if changes
            else ""
        ),
        "p": _range([change.p for change in changes]),
        "heads": [_head(point, head) for head in heads],
        "top5": _share([main.top5.value for main in mains if main.top5 is not None]),
        "gmacs": f"{point.gmacs:.4g}",
        "fewer": "" if point.point.is_baseline else f"{base.gmacs / point.gmacs:.2f}x",
        "speed": f"{point.clips_per_second:.3g}" if point.clips_per_second else "—",
        "faster": (
            f"{point.clips_per_second / base.clips_per_second:.2f}x"
            if has_speed and not point.point.is_baseline and point.clips_per_second and base.clips_per_second
            else ""
        ),
        "matching": "" if matching is None or point.point.is_baseline else f"{100 * matching:.1f} %",
        "tokens": f"{tokens[0]} → {tokens[-1]}" if tokens[0] != tokens[-1] else str(tokens[0]),
        "tokens_title": " ".join(map(str, tokens)),
        "fronts": ", ".join(_FRONTS[axis] for axis in COST_AXES if axis in point.fronts),
    }


def _head(point: SeriesPoint, head: str) -> str:
    scores: list[HeadScore] = [score for each in point.seeds for score in each.scores if score.head == head]
    return _share([score.top1.value for score in scores])


def _share(values: Sequence[float]) -> str:
    return f"{100 * _mean(values):.2f} %" if values else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _range(values: Sequence[float]) -> str:
    texts = list(dict.fromkeys(f"{value:.2g}" for value in sorted(values)))
    return "" if not texts else texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


__all__ = ["describe_protocol", "render_evaluation"]
