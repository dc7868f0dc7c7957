"""The report as one HTML file that needs nothing else: no script, no font, no picture from outside.

Axes: T frames, H and W pixels, C classes.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Int, UInt8

from vidflow.records import Reject, StageSummary, TrialResult
from vidflow.report.figures import (
    DPI,
    confusion_figure,
    curves_figure,
    pareto_figure,
    png_width,
    settings_figure,
    strip_image,
)
from vidflow.report.pareto import ParetoPoint, ParetoSection, resolution
from vidflow.report.tables import (
    Mode,
    RankedTrial,
    SeedGroup,
    class_scores,
    colour_setting,
    describe_settings,
    group_by_seed,
    group_rejects,
    most_confused,
    rank_trials,
    shared_settings,
)
from vidflow.tracking import without_credentials

_SHARES = ("top1", "top5")
_NUM_CONFUSED = 12
_MAX_REJECT_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A clip and what the best trial says of it.

    Attributes:
        frames: RGB frames of the clip.
        key: The clip's content key.
        label: True class; empty where the task has none.
        predicted: Predicted class; empty where the task has none.
        probability: Of the predicted class, in [0, 1]; None where there is none.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    key: str
    label: str
    predicted: str
    probability: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A section with a picture of somebody else's making, such as accuracy against cost.

    Attributes:
        title: Heading of the section.
        caption: What is seen, in a sentence or two.
        png: The picture.
    """

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that the page shows.

    Attributes:
        title: Heading of the page.
        config_yaml: The merged configuration.
        objective: Metric by which trials are ranked, such as `val/top1`.
        mode: Whether more of it is better.
        trials: Results in any order.
        class_names: Names by class index; empty where the task has no classes.
        stages: What each stage made.
        rejects: Inputs left out.
        examples: Clips with predictions of the best trial.
        confusion: Validation clips of the best trial by true (rows) and predicted class; None where there are none.
        provenance: What the results rest on: fingerprints, versions, hardware.
        notices: What a reader must know before any number, such as weights that were never trained.
        figures: Further sections.
        pareto: Score against cost, a section per task; empty where all trials use one feature set.
    """

    title: str
    config_yaml: str
    objective: str
    mode: Mode
    trials: Sequence[TrialResult]
    class_names: Sequence[str] = ()
    stages: Sequence[StageSummary] = ()
    rejects: Sequence[Reject] = ()
    examples: Sequence[Example] = ()
    confusion: Int[np.ndarray, "C C"] | None = None
    provenance: dict[str, str]
    notices: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    pareto: Sequence[ParetoSection] = ()


def render_page(data: ReportData) -> str:
    """Return the report as HTML; every text in it that comes from outside is escaped."""
    filters: dict[str, Callable[..., Any]] = {
        "bytes": format_bytes,
        "seconds": format_seconds,
        "magnitude": format_magnitude,
        "count": lambda number: f"{number:,}",
        "settings": describe_settings,
        "uri": _data_uri,
        "width": lambda png: round(png_width(png) * 96 / DPI),
        "strip": lambda frames: _data_uri(strip_image(frames), "jpeg"),
        "clean": without_credentials,
        "metric": lambda value, metric: format_metric(metric, value),
        "interval": _interval,
        "is_share": is_share,
        "resolution": lambda section: resolution(section.points) if is_share(section.objective) else None,
        "pareto": lambda section: pareto_figure(section, is_share=is_share(section.objective)),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vidflow.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template("page.html").render(_view(data))


def is_share(metric: str) -> bool:
    """Whether a metric is a share of clips, which people read in percent."""
    return metric.rsplit("/", 1)[-1] in _SHARES


def format_metric(metric: str, value: float | None) -> str:
    """Return a metric's value as people read it: `86.4 %` for a share, else four digits."""
    if value is None:
        return "—"
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def format_interval(metric: str, low: float, high: float) -> str:
    """Return the ends of an interval with one unit, such as `79.0 to 92.2 %`."""
    return f"{100 * low:.1f} to {100 * high:.1f} %" if is_share(metric) else f"{low:.4g} to {high:.4g}"


def format_bytes(number: int | float) -> str:
    """Return a size with a decimal unit and three digits, such as `1.53 GB`."""
    text = format_magnitude(number, ("", "k", "M", "G", "T"))
    return f"{text}B" if " " in text else f"{text} B"


def format_magnitude(number: int | float, prefixes: Sequence[str] = ("", "k", "M", "B")) -> str:
    """Return a count with three digits, such as `9.86 M`; a thousand million is `B`, as people say of parameters."""
    for prefix in prefixes[:-1]:
        if number < 999.5:  # what is more would be rounded to 1000
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.3g} {prefixes[-1]}"


def format_seconds(seconds: int | float) -> str:
    """Return a duration in its two largest units, such as `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _view(data: ReportData) -> dict[str, Any]:
    ranked = rank_trials(data.trials, data.objective, data.mode)
    groups = group_by_seed(ranked, data.mode)
    best = next((row for row in ranked if row.is_best), None)
    return {
        "data": data,
        "ranked": ranked,
        "best": best,
        "rivals": _rivals(ranked, best),
        "failed": [row for row in ranked if row.failed],
        "groups": groups,
        "has_seeds": any(len(group.trials) > 1 for group in groups),
        "setting_names": list(ranked[0].settings) if ranked else [],
        "shared": shared_settings(data.trials),
        "span": _span(ranked),
        "reject_groups": group_rejects(data.rejects),
        "max_reject_rows": _MAX_REJECT_ROWS,
        "confused": [] if data.confusion is None else most_confused(data.confusion, _NUM_CONFUSED),
        "classes": [] if data.confusion is None else class_scores(data.confusion),
        "has_intervals": any(row.low is not None for row in ranked),
        "value": lambda value: format_metric(data.objective, value),
        "interval": lambda row: format_interval(data.objective, row.low, row.high),
        **_pictures(data, ranked, groups),
    }


def _pictures(data: ReportData, ranked: Sequence[RankedTrial], groups: Sequence[SeedGroup]) -> dict[str, bytes | None]:
    colour_by = colour_setting(data.trials)
    metrics = [data.objective, *(name for name in ("val/loss", "train/loss") if name != data.objective)]
    shares = {name: is_share(name) for name in metrics}
    has_curves = any(row.result.history for row in ranked)
    return {
        "curves": curves_figure(ranked, metrics, colour_by=colour_by, is_share=shares) if has_curves else None,
        "effects": settings_figure(groups, data.objective, colour_by=colour_by, is_share=is_share(data.objective))
        if groups
        else None,
        "confusion": None if data.confusion is None else confusion_figure(data.confusion, data.class_names),
    }


def _rivals(ranked: Sequence[RankedTrial], best: RankedTrial | None) -> int | None:
    """Count the trials whose score lies within the best one's interval; None where there is no interval."""
    if best is None or best.low is None or best.high is None:
        return None
    low, high = best.low, best.high
    others = [row.score for row in ranked if row is not best and not row.failed and row.score is not None]
    return sum(low <= score <= high for score in others)


def _span(ranked: Sequence[RankedTrial]) -> tuple[float, float]:
    """Return the ends of the scale on which the table draws scores and intervals."""
    values = [v for row in ranked if not row.failed for v in (row.low, row.score, row.high) if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _interval(point: ParetoPoint, metric: str) -> str:
    assert point.low is not None
    assert point.high is not None
    return format_interval(metric, point.low, point.high)


def _data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
