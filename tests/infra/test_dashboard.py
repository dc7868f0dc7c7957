"""The dashboard asks for metrics that exist: those of the pool, and a few of Ray's own."""

import json
import re
from pathlib import Path

import ray
from ray.util.metrics import Counter, Metric
from templates import INFRA

from pipelines.pool_metrics import PoolMetrics


def offered() -> set[str]:
    """Names of our metrics as Prometheus sees them."""
    metrics = [value for value in vars(PoolMetrics("shard")).values() if isinstance(value, Metric)]
    # The exporter ends the name of a counter with `_total`.
    return {f"ray_{m.info['name']}{'_total' if isinstance(m, Counter) else ''}" for m in metrics}


def test_the_dashboard_shows_every_metric_of_the_pool_and_no_other_of_ours() -> None:
    dashboard = json.loads((INFRA / "grafana/vidflow.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = set(re.findall(r"\bray_\w+", " ".join(queries)))
    assert {name for name in named if name.startswith("ray_vidflow")} == offered()
    reported = (Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    for name in named - offered():
        assert f'"{name.removeprefix("ray_")}"' in reported, name


def test_panels_of_the_dashboard_do_not_overlap_and_say_what_they_show() -> None:
    panels = json.loads((INFRA / "grafana/vidflow.json").read_text())["panels"]
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    assert all(panel["title"] and panel["description"] for panel in panels)
