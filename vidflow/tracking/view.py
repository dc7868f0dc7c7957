"""What MLflow's UI shows first: the objective and the settings that differ, of every trial, best first.

Without a view the UI shows neither metrics nor settings, and hides the trials behind their sweep. MLflow keeps views
that users share as tags of the experiment; the address of a page names one.
"""

import json
from dataclasses import dataclass
from typing import Any

VIEW = "vidflow"
"""Name of the view, in the address of a page."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# MLflow sorts the charts of other metrics into these: by what is before the `/`, and `system/` by this name.
_SECTIONS = ("val", "train", "System metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsView:
    """The columns, the order and the first charts of the runs.

    Attributes:
        metric: Metric that ranks runs, such as `best/val/top1`.
        curve: Metric whose course over the epochs is drawn, such as `val/top1`.
        mode: Whether a larger metric is better.
        params: Settings that get a column.
    """

    metric: str
    curve: str
    mode: str
    params: tuple[str, ...]

    def to_tag(self) -> str:
        """Return the view as MLflow stores one.

        Source: `ExperimentPageUIState.tsx` and `runs-charts.types.ts` of MLflow 3.17; fields that MLflow does not know
        are ignored, and a field that is missing has its default.
        """
        metrics = [f"metrics.`{self.metric}`"]
        state: dict[str, Any] = {
            "orderByKey": metrics[0],
            "orderByAsc": self.mode == "min",
            "selectedColumns": metrics + [f"params.`{name}`" for name in self.params],
            "columnOrder": [],
            "columnWidths": {},
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runsVisibilityMap": {},
            "runsHiddenMode": "FIRST_20_RUNS",
            "compareRunCharts": self._charts(),
            "compareRunSections": [_section("sweep", "Sweep"), *(_section(name, name) for name in _SECTIONS)],
            "viewMaximized": False,
            "runListHidden": False,
            "isAccordionReordered": True,  # else sections are sorted by name
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "groupBy": None,
            "groupsExpanded": {},
            "autoRefreshEnabled": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }
        return json.dumps(state)

    def _charts(self) -> list[dict[str, Any]]:
        """Return the charts of the first section; MLflow adds one for each other metric."""
        return [
            _chart(
                "PARALLEL",
                selectedParams=list(self.params),
                selectedMetrics=[self.metric],
                showAllRuns=True,
            ),
            _chart("BAR", metricKey=self.metric),
            _chart(
                "LINE",
                metricKey=self.curve,
                selectedMetricKeys=[self.curve],
                lineSmoothness=0,
                xAxisKey="step",
                xAxisScaleType="linear",
                scaleType="linear",
                yAxisKey="metric",
                yAxisExpressions=[],
                range={},
                useGlobalXaxisKey=True,
                useGlobalLineSmoothing=True,
            ),
        ]


def _chart(kind: str, **settings: Any) -> dict[str, Any]:
    common = {"metricSectionId": "sweep", "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    return {"type": kind, "uuid": f"vidflow-{kind.lower()}", **common, **settings}


def _section(uuid: str, name: str) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": True}
