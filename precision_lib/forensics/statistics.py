"""Bootstrap over sequences: intervals for ratios of sums.

The hazard. Tokens of one sequence share their context, so their errors are not independent, and
an interval computed over tokens is too narrow by the square root of the sequence length at worst.
The sequence is the unit that is resampled. A metric is a function of sums over tokens (a mean, an
RMS over an RMS), so each sequence is reduced to its sums once, and a resample is a weighted total.

N sequences, S sums per sequence, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Totals by name, each a number or an [R] array, to a metric of the same kind.
MetricFunction = Callable[[dict[str, Array]], Array]


class NothingComparedError(ValueError):
    """Zero elements were compared: the run says nothing, which is not the same as healthy."""


CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Metric:
    """A measured number with its interval.

    Attributes:
        value: the estimate on all sequences.
        low, high: percentile bootstrap interval at :data:`CONFIDENCE`.
        n: elements compared (tokens); never 0.
        unit: what the number counts.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str

    def as_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "unit": self.unit,
        }


def resampling_weights(strata: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> Array:
    """How often each sequence is drawn in each resample.

    Args:
        strata: [N], group of each sequence (its length); each group keeps its size.
        seed: of the resampling.

    Returns:
        [R, N] counts.

    Raises:
        NothingComparedError: when there is no sequence.
    """
    if len(strata) == 0:
        raise NothingComparedError("nothing to resample: no sequence was compared")
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        share = np.full(len(rows), 1 / len(rows))
        weights[:, rows] = generator.multinomial(len(rows), share, size=resamples)
    return weights


def estimate(
    sums: dict[str, Array], metric: MetricFunction, weights: Array, *, n: int, unit: str
) -> Metric:
    """A metric with its bootstrap interval.

    Args:
        sums: name to [N] per-sequence sums.
        metric: from totals by name to the metric; must accept [R] arrays.
        weights: [R, N] from :func:`resampling_weights`; the same weights for two metrics make
            their contrast a paired one.
        n: elements compared.

    Raises:
        NothingComparedError: when nothing was compared.
        ValueError: when the metric is not finite.
    """
    if n == 0:
        raise NothingComparedError("zero compared elements: a metric of nothing is not a metric")
    value = float(metric({name: s.sum() for name, s in sums.items()}))
    spread = metric({name: weights @ s for name, s in sums.items()})
    low, high = np.quantile(spread, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if not np.isfinite([value, low, high]).all():
        raise ValueError(f"metric is not finite: {value} [{low}, {high}] from {n} elements")
    return Metric(value, float(low), float(high), n, unit)


def contrast(
    first: dict[str, Array],
    second: dict[str, Array],
    metric: MetricFunction,
    compare: Callable[[Array, Array], Array],
    weights: Array,
    *,
    n: int,
    unit: str,
) -> Metric:
    """A paired comparison of one metric between two configurations on the same sequences.

    ``compare(metric(first), metric(second))`` on the data and on every resample.
    """
    both = {f"a_{k}": v for k, v in first.items()} | {f"b_{k}": v for k, v in second.items()}

    def paired(totals: dict[str, Array]) -> Array:
        a = metric({k[2:]: v for k, v in totals.items() if k.startswith("a_")})
        b = metric({k[2:]: v for k, v in totals.items() if k.startswith("b_")})
        return compare(a, b)

    return estimate(both, paired, weights, n=n, unit=unit)
