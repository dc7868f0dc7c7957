"""The report as one self-contained HTML file: no script, no font, no picture from outside."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from vidflow.config.tracking_uri import without_credentials
from vidflow.records import Reject, StageManifest
from vidflow.report.alts import describe_pareto
from vidflow.report.figures import DPI, Drawing, Look, draw_all, pareto_figure, png_width, strip_drawing
from vidflow.report.formats import (
    format_bytes,
    format_interval,
    format_magnitude,
    format_metric,
    format_seconds,
    is_share,
)
from vidflow.report.pareto import ParetoPoint, ParetoSection, resolution
from vidflow.report.pictures import PREDICTION, TRUTH
from vidflow.report.sections import Example, TaskSection, view_section
from vidflow.report.tables import describe_settings, group_rejects

_MAX_REJECT_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that the page shows.

    Attributes:
        title: Heading of the page.
        config_yaml: The merged configuration.
        sections: The tasks, each with its trials.
        stages: What each stage made.
        rejects: Inputs left out.
        provenance: What the results depend on: fingerprints, versions, hardware.
        notices: Warnings to read before any number, such as that the weights were never trained.
        pareto: Score against cost, a section per task; empty if all trials use one feature set.
        sources: Key of a clip -> its name on the page, which says from which video it is.
        downloads: Files beside the page: name -> what it is.
        ui: The command that opens the MLflow UI; empty if not known.
        root: The experiment's folder; empty if not known.
    """

    title: str
    config_yaml: str
    sections: Sequence[TaskSection]
    stages: Sequence[StageManifest] = ()
    rejects: Sequence[Reject] = ()
    provenance: dict[str, str]
    notices: Sequence[str] = ()
    pareto: Sequence[ParetoSection] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    downloads: Mapping[str, str] = field(default_factory=dict)
    ui: str = ""
    root: str = ""


def render_page(data: ReportData) -> str:
    """Return the report as HTML; all text that comes from outside is escaped."""
    filters: dict[str, Callable[..., Any]] = {
        "settings": describe_settings,
        "strip": strip_drawing,
        "named": lambda key: data.sources.get(key, key),
        "metric": lambda value, metric: format_metric(metric, value),
        "interval": _interval,
        "is_share": is_share,
        "resolution": lambda section: resolution(section.points) if is_share(section.objective) else None,
        "pareto": _draw_pareto,
        "pareto_text": lambda section: describe_pareto(section, lambda value: format_metric(section.objective, value)),
    }
    return render("page.html", _view(data), filters)


def render(template: str, view: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """Fill in a template of this folder, with the filters that every page needs and some of its own."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vidflow.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "seconds": format_seconds,
        "duration": lambda seconds: f"{1000 * seconds:.3g} ms" if seconds < 1 else format_seconds(seconds),
        "magnitude": format_magnitude,
        "count": lambda number: f"{number:,}",
        "clean": without_credentials,
        "versions": _versions,
        **filters,
    }
    return environment.get_template(template).render(view)


def _draw_pareto(section: ParetoSection) -> Drawing:
    return draw_all(lambda look: pareto_figure(section, is_share=is_share(section.objective), look=look))


def _view(data: ReportData) -> dict[str, Any]:
    # With a single task the anchors of the page need no prefix.
    prefixes = [f"{section.task}-" if len(data.sections) > 1 else "" for section in data.sections]
    return {
        "data": data,
        "tasks": [
            view_section(section, prefix=prefix) for section, prefix in zip(data.sections, prefixes, strict=True)
        ],
        "colours": {"truth": TRUTH, "prediction": PREDICTION},
        "reject_groups": group_rejects(data.rejects),
        "max_reject_rows": _MAX_REJECT_ROWS,
    }


def _interval(point: ParetoPoint, metric: str) -> str:
    assert point.low is not None
    assert point.high is not None
    return format_interval(metric, point.low, point.high)


def _versions(drawing: Drawing, kind: str = "png", scale: float = DPI / 96) -> list[dict[str, Any]]:
    """Return a drawing's versions for the elements of `<picture>`; the last, for any reader, has no condition.

    Args:
        drawing: The versions.
        kind: `png` or `jpeg`.
        scale: Pixels of the picture per pixel of the page.
    """
    first_fits = sorted(drawing, key=lambda look: (look.is_narrow, look.is_dark), reverse=True)
    return [
        {
            "media": _media(look),
            "uri": f"data:image/{kind};base64,{b64encode(drawing[look]).decode()}",
            "width": round(png_width(drawing[look]) / scale),
        }
        for look in first_fits
    ]


def _media(look: Look) -> str:
    narrow, dark = "(max-width: 40rem)", "(prefers-color-scheme: dark)"
    return " and ".join([*([narrow] if look.is_narrow else []), *([dark] if look.is_dark else [])])


__all__ = ["Example", "ReportData", "TaskSection", "is_share", "render", "render_page"]
