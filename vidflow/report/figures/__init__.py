"""The report's figures, as PNG or JPEG bytes, each for light and dark, wide and narrow pages; owner of matplotlib."""

from vidflow.report.figures.canvas import DPI, LIGHT, LOOKS, Drawing, Look, draw_all, png_width
from vidflow.report.figures.charts import ScoreBar, changes_figure, curves_figure, scores_figure, settings_figure
from vidflow.report.figures.confusion import confusion_figure
from vidflow.report.figures.geometry import depth_figure, ways_figure
from vidflow.report.figures.pareto import pareto_figure
from vidflow.report.figures.strips import strip_drawing, strip_image

__all__ = [
    "DPI",
    "LIGHT",
    "LOOKS",
    "Drawing",
    "Look",
    "ScoreBar",
    "changes_figure",
    "confusion_figure",
    "curves_figure",
    "depth_figure",
    "draw_all",
    "pareto_figure",
    "png_width",
    "scores_figure",
    "settings_figure",
    "strip_drawing",
    "strip_image",
    "ways_figure",
]
