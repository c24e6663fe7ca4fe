"""The smallest regression that the gate finds, before there is one.

The hazard. "No regression" from a gate that could not have seen one is a sentence about the gate.
So what it can see is stated beside what it saw: per metric, the smallest true worsening that it
reports with a probability of :data:`POWER`, on another seed than the baseline's.

On the metric's scale, with the standard error s of one run and the floor f,

    smallest = (t + z * sqrt(1 + t^2 / nu)) * sqrt(2) * s + f,   t = t(nu, 1 - FALSE_ALARMS / m)

with the normal quantile z of POWER and the nu degrees of freedom of both runs: the worsening and
the error of the difference have to be past the limit together, and with few prompts the limit
itself, a standard error times 7, is most of what varies. The variance of that standard error is
taken as twice that of normal data, t^2 / (2 nu), since the prompts' sums of squares are skewed.
On the baseline's own seed both runs see the same tokens, the sampling errors cancel, and the
first term alone is enough. Source: Johnson and Welch, "Applications of the non-central
t-distribution", Biometrika 31 (1940).
"""

import math
from dataclasses import replace
from statistics import NormalDist

from precision_lib.compare.directions import Direction
from precision_lib.compare.margins import counts_elements, quantile, standard_error
from precision_lib.forensics.statistics import Metric

POWER = 0.9


def smallest_regression(
    metric: Metric, how: Direction, comparisons: int, floor: float = 0.0
) -> float:
    """The value from which on a worsening is found, in the metric's own unit.

    Args:
        metric: of a baseline, with ``clusters``.
        how: its row in ``directions.py``. floor: of noise, in the metric's unit.
    """
    value = abs(metric.value) if how.scale == "magnitude" else metric.value
    if how.scale == "exact" and value == 0:
        return 1 / metric.n
    if how.scale in ("ratio", "step") and metric.low > 0:
        value_log, low, high = map(math.log, (metric.value, metric.low, metric.high))
        logs = replace(metric, value=value_log, low=low, high=high)
        factor = math.exp(_reach(logs, comparisons))
        # Steps are powers of two, and one doubling is no change.
        factor = max(factor, 4.0) if how.scale == "step" else factor
        worse = factor if how.worse > 0 else 1 / factor
        return value * worse + how.worse * floor
    if standard_error(metric) == 0:
        return value + how.worse * (_rare(metric, comparisons) + floor)
    return value + how.worse * (_reach(metric, comparisons) + floor)


def _rare(metric: Metric, comparisons: int) -> float:
    """Share from which on new events are found: k of them scatter by the root of k.

    0 for a metric that counts nothing: whatever is above the floor is found.
    """
    if not counts_elements(metric):
        return 0.0
    clusters = metric.clusters
    t = quantile(comparisons, 2 * (clusters - 1) if clusters else None)
    return float(t + NormalDist().inv_cdf(POWER)) ** 2 / metric.n


def _reach(metric: Metric, comparisons: int) -> float:
    """(t + z sqrt(1 + t^2 / nu)) * sqrt(2) * s."""
    clusters = metric.clusters
    degrees = 2 * (clusters - 1) if clusters else None
    t = quantile(comparisons, degrees)
    varies = math.sqrt(1 + t**2 / degrees) if degrees else 1.0
    error = math.sqrt(2) * standard_error(metric)
    return float(t + NormalDist().inv_cdf(POWER) * varies) * error
