"""Curves for drawing: points grouped by name, thinned so that peaks survive.

Thinning is "largest triangle three buckets" (Steinarsson 2013, chapter 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gymsmith.schema import Metric

Point = tuple[int, float]


def by_name(metrics: Iterable[Metric]) -> dict[str, list[Point]]:
    """Metric name -> (step, value) by step, for metrics sorted by (name, step)."""
    series: dict[str, list[Point]] = {}
    for m in metrics:
        series.setdefault(m.name, []).append((m.step, m.value))
    return series


def thin(points: Sequence[Point], keep: int) -> list[Point]:
    """At most `keep` of the points (all when `keep` is 0), first and last included."""
    n = len(points)
    if keep == 0 or n <= keep:
        return list(points)
    if keep < 3:
        return [points[-1]] if keep == 1 else [points[0], points[-1]]
    value = [v if math.isfinite(v) else 0.0 for _, v in points]
    width = (n - 2) / (keep - 2)
    out, last = [0], 0
    for bucket in range(keep - 2):
        start, end = int(bucket * width) + 1, int((bucket + 1) * width) + 1
        after = range(end, min(int((bucket + 2) * width) + 1, n))
        mean_x = sum(points[i][0] for i in after) / len(after)
        mean_y = sum(value[i] for i in after) / len(after)
        ax, ay = points[last][0], value[last]
        last = max(range(start, end), key=lambda i: abs((ax - mean_x) * (value[i] - ay) - (ax - points[i][0]) * (mean_y - ay)))
        out.append(last)
    return [points[i] for i in [*out, n - 1]]


def finite(points: Iterable[Point]) -> list[tuple[int, float | None]]:
    """JSON knows no NaN: such values become null, a gap in the curve."""
    return [(step, value if math.isfinite(value) else None) for step, value in points]
