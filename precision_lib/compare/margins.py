"""How much worse a metric may come out before it is a regression.

The hazard. A run compares hundreds of metrics, so that a limit at 95 % each is always passed
somewhere, and a limit by hand lets a regression of 10 to 50 times pass. So the limit is computed
from both intervals, at a probability that all comparisons of the run share, and widened by the
noise floor. A run may not hide behind an interval of its own: c below limits it.

With standard errors s0 of the baseline and s1 of the run, on the metric's scale, and nu = nu0 + nu1
degrees of freedom,

    limit = before + t(nu, 1 - p) * sqrt(s0^2 + min(s1, c s0)^2) + floor,   p = FALSE_ALARMS / m

for m comparisons. A standard error is half of a 95 % interval over Student's quantile of its
clusters; the wider of its two halves, since a ratio of sums is skewed. The degrees of freedom are
those of Student's test and not of Welch's: what is tested is that nothing has changed, and then
both variances are one. For the same reason c is what chance allows two standard errors of one
variance to differ by, the root of the F quantile at p; on the baseline's own seed, where both runs
see the same tokens, it is 1.

A share that was 0 (or 1) on every element has no interval. New events are then a count, which
scatters by its root: t^2 of n elements are allowed.
Source: Student's two-sample t, Fisher's F; Bonferroni for the number of comparisons.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from precision_lib.compare.directions import Direction
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.t_quantile import student_quantile

#: Share of clean runs in which any metric may be called a regression, decided once for all of them.
FALSE_ALARMS = 1e-3


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
    before: Metric,
    after: Metric,
    how: Direction,
    comparisons: int,
    floor: float = 0.0,
    *,
    same_seed: bool = False,
) -> Margin:
    """Limits of a metric on both sides.

    Args:
        before, after: of the baseline and of the run; finite.
        how: the metric's row in ``directions.py``.
        comparisons: number of metrics that this run compares.
        floor: of noise, in the metric's unit.
        same_seed: whether both runs saw the same prompts and policies.
    """
    old, new = before.value, after.value
    if how.scale == "magnitude":
        old, new = abs(old), abs(new)
    if how.scale == "exact" and old == 0:
        return Margin(old, new, old, old)
    if how.scale in ("ratio", "step") and old > 0 and before.low > 0:
        allowed = allowance(_logarithm(before), _logarithm(after), comparisons, same_seed=same_seed)
        factor = max(math.exp(allowed), 2.0) if how.scale == "step" else math.exp(allowed)
        worse, better = (factor, 1 / factor) if how.worse > 0 else (1 / factor, factor)
        return Margin(old, new, old * worse + how.worse * floor, old * better - how.worse * floor)
    allowed = allowance(before, after, comparisons, same_seed=same_seed) + floor
    return Margin(old, new, old + how.worse * allowed, old - how.worse * allowed)


def is_beyond(value: float, limit: float, worse: int) -> bool:
    """True when ``value`` is worse than ``limit``, strictly."""
    return value > limit if worse > 0 else value < limit


def allowance(before: Metric, after: Metric, comparisons: int, *, same_seed: bool = False) -> float:
    """The combined interval t * sqrt(s0^2 + min(s1, c s0)^2), or a count where there is none."""
    s0, s1 = standard_error(before), standard_error(after)
    clusters = before.clusters
    degrees = 2 * (clusters - 1) if clusters else None
    t = quantile(comparisons, degrees)
    if s0 == 0:
        return t**2 / before.n if counts_elements(before) else 0.0
    cap = 1.0 if same_seed else widest(comparisons, clusters)
    return t * math.hypot(s0, min(s1, cap * s0))


#: Units of metrics that count elements.
_COUNTS = ("share of", "(concordant")


def counts_elements(metric: Metric) -> bool:
    """Whether a metric is made of counts: new events then scatter by the root of their number."""
    return metric.unit.startswith(_COUNTS)


def quantile(comparisons: int, degrees: int | None) -> float:
    """One-sided quantile of Student's t, or the normal one, at FALSE_ALARMS / comparisons."""
    tail = FALSE_ALARMS / max(comparisons, 1)
    if degrees is None:
        return NormalDist().inv_cdf(1 - tail)
    return student_quantile(max(degrees, 1), 1 - 2 * tail)


def widest(comparisons: int, clusters: int | None) -> float:
    """How many times wider one standard error may be than another of the same variance, by chance.

    The root of the quantile of F(nu, nu), from Student's t by x - 1 / x = 2 t / sqrt(nu).
    Source: Cacoullos, "A relation between t and F-distributions", JASA 60 (1965).
    """
    if not clusters:
        return 1.0
    nu = clusters - 1
    half = quantile(comparisons, nu) / math.sqrt(nu)
    return half + math.sqrt(1 + half**2)


def standard_error(metric: Metric) -> float:
    """Of one metric, from its 95 % interval; 0 where the interval is a point."""
    arm = max(metric.high - metric.value, metric.value - metric.low, 0.0)
    clusters = metric.clusters
    of_arm = student_quantile(clusters - 1) if clusters else NormalDist().inv_cdf(0.975)
    return float(arm / of_arm)


def _logarithm(metric: Metric) -> Metric:
    """On the scale of the logarithm; an end at 0 or below lies infinitely far away there."""
    figures = metric.value, metric.low, metric.high
    value, low, high = (math.log(x) if x > 0 else -math.inf for x in figures)
    return replace(metric, value=value, low=low, high=high)
