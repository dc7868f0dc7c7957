"""The report as one self-contained HTML file: no script, no font, no picture from outside."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from vidflow.config.tracking_uri import without_credentials
from vidflow.records import Reject, StageManifest
from vidflow.report.figures import DPI, pareto_figure, png_width, strip_image
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
    """

    title: str
    config_yaml: str
    sections: Sequence[TaskSection]
    stages: Sequence[StageManifest] = ()
    rejects: Sequence[Reject] = ()
    provenance: dict[str, str]
    notices: Sequence[str] = ()
    pareto: Sequence[ParetoSection] = ()


def render_page(data: ReportData) -> str:
    """Return the report as HTML; all text that comes from outside is escaped."""
    filters: dict[str, Callable[..., Any]] = {
        "bytes": format_bytes,
        "seconds": format_seconds,
        "magnitude": format_magnitude,
        "count": lambda number: f"{number:,}",
        "settings": describe_settings,
        "uri": _data_uri,
        "picture": lambda picture: _data_uri(picture.content, picture.kind),
        "width": lambda png, scale=DPI / 96: round(png_width(png) / scale),
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


def _data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


__all__ = ["Example", "ReportData", "TaskSection", "is_share", "render_page"]
