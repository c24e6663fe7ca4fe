"""How much worse a metric may come out before it is a regression.

The hazard. A threshold by hand lets a regression of 10 to 50 times pass, and one at two standard
errors cries wolf: a run compares hundreds of metrics, and at 95 % each some are always out. So
the limit is computed from both intervals, at a probability that is shared by all comparisons of
the run, and widened by the noise floor.

With standard errors s0 of the baseline and s1 of the run, on the metric's scale, and nu = nu0 + nu1
degrees of freedom,

    limit = before + t(nu, 1 - FALSE_ALARMS / comparisons) * sqrt(s0^2 + s1^2) + floor

where a standard error is half of a 95 % interval over Student's quantile of its clusters; the
wider of its two halves, since a ratio of sums is skewed. The degrees of freedom are those of
Student's test and not of Welch's: what is tested is that nothing has changed, and then both
variances are one. Source: Student's two-sample t; Bonferroni for the number of comparisons.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from precision_lib.forensics.student import student_quantile
from precision_lib.records.directions import Direction

#: Share of clean runs in which any metric may be called a regression, decided once for all of them.
FALSE_ALARMS = 1e-3

#: A metric as a record holds it: value, low, high, n, unit and, from a bootstrap, clusters.
MetricJson = dict[str, Any]


@dataclass(frozen=True)
class Margin:
    """What separates a regression from chance, in the metric's own unit.

    Attributes:
        before, after: the values compared; absolute ones for a magnitude.
        limit: ``after`` on its far side is a regression.
        improved: ``after`` as far away on the other side is an improvement.
    """

    before: float
    after: float
    limit: float
    improved: float


def margin(
    before: MetricJson, after: MetricJson, how: Direction, comparisons: int, floor: float = 0.0
) -> Margin:
    """Limits of a metric on both sides.

    Args:
        before, after: of the baseline and of the run.
        how: the metric's row in ``directions.py``.
        comparisons: number of metrics that this run compares.
        floor: of noise, in the metric's unit.
    """
    old, new = float(before["value"]), float(after["value"])
    if how.scale == "magnitude":
        old, new = abs(old), abs(new)
    if how.scale == "exact" and old == 0:
        return Margin(old, new, old, old)
    if how.scale in ("ratio", "step") and _positive(before, after):
        factor = math.exp(allowance(_logarithm(before), _logarithm(after), comparisons))
        factor = max(factor, 2.0) if how.scale == "step" else factor
        worse, better = (factor, 1 / factor) if how.worse > 0 else (1 / factor, factor)
        return Margin(old, new, old * worse + how.worse * floor, old * better - how.worse * floor)
    allowed = how.worse * (allowance(before, after, comparisons) + floor)
    return Margin(old, new, old + allowed, old - allowed)


def is_beyond(value: float, limit: float, worse: int) -> bool:
    """True when ``value`` is worse than ``limit``, strictly."""
    return value > limit if worse > 0 else value < limit


def allowance(before: MetricJson, after: MetricJson, comparisons: int) -> float:
    """t * sqrt(s0^2 + s1^2): the combined interval at the run's probability of a false alarm."""
    variance = sum(standard_error(m) ** 2 for m in (before, after))
    clusters = [m.get("clusters") for m in (before, after)]
    degrees = sum(c - 1 for c in clusters if c) if all(clusters) else None
    return quantile(comparisons, degrees) * math.sqrt(variance)


def quantile(comparisons: int, degrees: int | None) -> float:
    """One-sided quantile of Student's t, or the normal one, at FALSE_ALARMS / comparisons."""
    tail = FALSE_ALARMS / max(comparisons, 1)
    if degrees is None:
        return NormalDist().inv_cdf(1 - tail)
    return student_quantile(max(degrees, 1), 1 - 2 * tail)


def standard_error(metric: MetricJson) -> float:
    """Of one metric, from its 95 % interval; 0 where the interval is a point."""
    arm = max(metric["high"] - metric["value"], metric["value"] - metric["low"], 0.0)
    clusters = metric.get("clusters")
    return float(
        arm / (student_quantile(clusters - 1) if clusters else NormalDist().inv_cdf(0.975))
    )


def _positive(*metrics: MetricJson) -> bool:
    """Whether all of them can be compared as factors."""
    return all(m["low"] > 0 and m["value"] > 0 for m in metrics)


def _logarithm(metric: MetricJson) -> MetricJson:
    return metric | {name: math.log(metric[name]) for name in ("value", "low", "high")}
