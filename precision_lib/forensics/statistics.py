"""Bootstrap over prompts: intervals for ratios of sums.

The hazard. Tokens of one sequence share their context, so their errors are not independent, and
an interval computed over tokens is too narrow by the square root of the sequence length at worst.
Sequences of one prompt share it. So the prompt, with all its sequences, is the cluster that is
resampled. A metric is a function of sums over tokens (a mean, an RMS over an RMS), so each
sequence is reduced to its sums once, and a resample is a weighted total.

N sequences, R resamples.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from precision_lib.metrics.measure import Array, MetricFunction, Totals


class NothingComparedError(ValueError):
    """Zero elements were compared: the run says nothing, which is not the same as healthy."""


CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Metric:
    """A measured number with its interval.

    Attributes:
        value: the estimate on all sequences.
        low, high: interval at :data:`CONFIDENCE`.
        n: elements compared (tokens); never 0.
        unit: what the number counts.
        clusters: prompts or seeds that the interval rests on; None where it was made otherwise.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    clusters: int | None = None

    @property
    def words(self) -> str:
        """``0.5 [0.4, 0.6]``, two digits each."""
        return f"{self.value:.2g} [{self.low:.2g}, {self.high:.2g}]"


@dataclass(frozen=True)
class Resampling:
    """Bootstrap resamples, shared by all metrics so that their contrasts are paired.

    Attributes:
        weights: [R, N], how often each sequence counts in each resample.
        clusters: number of clusters that were drawn from.
    """

    weights: Array
    clusters: int

    def of(self, chosen: NDArray[np.bool_]) -> "Resampling":
        """The same resamples, seen on the chosen sequences [N] only."""
        return Resampling(self.weights[:, chosen], self.clusters)

    def totals(self, sums: dict[str, Array]) -> Totals:
        """[R] totals of [N] sums by name, each computed when a metric first asks for it."""
        return _Totals(sums, self.weights)


@dataclass(frozen=True)
class _Totals(Mapping[str, Array]):
    sums: dict[str, Array]
    weights: Array
    _computed: dict[str, Array] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        if name not in self._computed:
            self._computed[name] = self.weights @ self.sums[name]
        return self._computed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)


def resample(clusters: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> Resampling:
    """Draw whole clusters with replacement; the sequences of a cluster come and go together.

    Args:
        clusters: [N], the cluster (prompt) of each sequence, numbered from 0.
        seed: of the resampling.

    Raises:
        NothingComparedError: when there is no sequence.
    """
    if len(clusters) == 0:
        raise NothingComparedError("nothing to resample: no sequence was compared")
    generator, count = np.random.default_rng(seed), int(clusters.max()) + 1
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    return Resampling(drawn[:, clusters].astype(np.float64), count)


def small_sample_factor(clusters: int) -> float:
    """How much wider than the percentile bootstrap an honest interval of few clusters is.

    The bootstrap of n clusters has variance (n - 1)/n of the right one and normal instead of
    Student tails: sqrt(n / (n - 1)) * t / z at :data:`CONFIDENCE`, with Student's quantile by the
    Cornish-Fisher expansion (Abramowitz and Stegun, 26.7.5; within 1 % from 7 clusters on).
    """
    z, nu = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), clusters - 1
    t: float = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return math.sqrt(clusters / nu) * t / z


def estimate(
    sums: dict[str, Array],
    metric: MetricFunction,
    resampling: Resampling,
    *,
    n: int,
    unit: str,
    totals: Totals | None = None,
) -> Metric:
    """A metric with its bootstrap interval, widened for the number of clusters.

    Args:
        sums: name to [N] per-sequence sums.
        metric: from totals by name to the metric; must accept [R] arrays.
        resampling: from :func:`resample`.
        n: elements compared.
        totals: ``resampling.totals(sums)``, where several metrics share them.

    Raises:
        NothingComparedError: when nothing was compared.
        ValueError: when the metric is not finite.
    """
    if n == 0:
        raise NothingComparedError("zero compared elements: a metric of nothing is not a metric")
    value = float(metric({name: s.sum() for name, s in sums.items()}))
    spread = metric(resampling.totals(sums) if totals is None else totals)
    quantiles = np.quantile(spread, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = value + (quantiles - value) * small_sample_factor(resampling.clusters)
    if not np.isfinite([value, low, high]).all():
        raise ValueError(f"metric is not finite: {value} [{low}, {high}] from {n} elements")
    return Metric(value, float(low), float(high), n, unit, resampling.clusters)


@dataclass(frozen=True)
class Part(Mapping[str, Array]):
    """The totals whose names begin with a prefix, without it."""

    whole: Totals
    prefix: str

    def __getitem__(self, name: str) -> Array:
        return self.whole[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (n.removeprefix(self.prefix) for n in self.whole if n.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def contrast(
    first: dict[str, Array],
    second: dict[str, Array],
    metric: MetricFunction,
    compare: Callable[[Array, Array], Array],
    resampling: Resampling,
    *,
    n: int,
    unit: str,
) -> Metric:
    """A paired comparison of one metric between two configurations on the same sequences.

    ``compare(metric(first), metric(second))`` on the data and on every resample.
    """
    both = {f"a_{k}": v for k, v in first.items()} | {f"b_{k}": v for k, v in second.items()}

    def paired(totals: Totals) -> Array:
        return compare(metric(Part(totals, "a_")), metric(Part(totals, "b_")))

    return estimate(both, paired, resampling, n=n, unit=unit)
