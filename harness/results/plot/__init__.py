"""Figures of a sweep, for notebooks: each takes a frame and, if given, the axes to draw on; it returns them.

matplotlib is imported when something is drawn. Differences are arm − control, whatever a metric's direction.
"""

from harness.results.plot.charts import (
    dose_response,
    forest,
    heat_map,
    metric_by_metric,
    parallel_coordinates,
    slopes,
)
from harness.results.plot.images import best_and_worst, grid, show

__all__ = [
    "best_and_worst",
    "dose_response",
    "forest",
    "grid",
    "heat_map",
    "metric_by_metric",
    "parallel_coordinates",
    "show",
    "slopes",
]
