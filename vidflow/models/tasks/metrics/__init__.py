"""The metrics of the five tasks and their choice by name."""

from typing import assert_never

from vidflow.models.tasks import TaskName
from vidflow.models.tasks.metrics.box_tracking import BoxTrackingMetric
from vidflow.models.tasks.metrics.camera_pose import CameraPoseMetric
from vidflow.models.tasks.metrics.classification import ClassificationMetric, wilson_interval
from vidflow.models.tasks.metrics.depth import DepthMetric
from vidflow.models.tasks.metrics.metric import Metric
from vidflow.models.tasks.metrics.point_tracking import PointTrackingMetric, QueryMode


def build_metric(name: TaskName, *, query_mode: QueryMode = "first") -> Metric:
    """Build the metric of a task; `query_mode` is which frames of a tracked point count."""
    match name:
        case "classification":
            return ClassificationMetric()
        case "box_tracking":
            return BoxTrackingMetric()
        case "point_tracking":
            return PointTrackingMetric(query_mode)
        case "depth":
            return DepthMetric()
        case "camera_pose":
            return CameraPoseMetric()
        case _:
            assert_never(name)


__all__ = ["ClassificationMetric", "Metric", "QueryMode", "build_metric", "wilson_interval"]
