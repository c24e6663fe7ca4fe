"""Metrics of configurations that were measured on the same sequences, and their paired contrasts.

N sequences, R resamples; sums are name to [N] totals per sequence.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.forensics.hypothesis import BATCH_VARIANCE, Decision
from precision_lib.forensics.shapley import Coalition, ErrorBudget, shapley
from precision_lib.forensics.statistics import (
    Metric,
    Part,
    Resampling,
    contrast,
    estimate,
)
from precision_lib.forensics.verdicts import INCONCLUSIVE, Cell
from precision_lib.matrix import get_configuration
from precision_lib.metrics.measure import Array, Measure, Totals

Sums = dict[str, Array]
#: Ends of the names of metrics that are shares of something counted.
_SHARES = ("_frac", "_rate")
#: Half-widths per distance from the limit beyond which no affordable number of sequences decides.
_TOO_CLOSE = 30
PURE, REFERENCE_RUN = get_configuration("bf16_pure"), get_configuration("fp32_baseline")


def per_sequence(quantities: dict[str, Tensor], sequence: NDArray[np.int64]) -> Sums:
    """[M] summands per token to [N] sums per sequence; ``sequence`` [M] numbers them from 0."""
    return {
        name: np.bincount(sequence, weights=q.numpy()).astype(np.float64)
        for name, q in quantities.items()
    }


def _share_removed(before: Array, after: Array) -> Array:
    some = np.asarray(before) > 0
    return np.where(some, 1 - after / np.where(some, before, 1.0), 0.0)


def _removed(component: str, damages: Mapping[Coalition, Array]) -> Array:
    """The share of a component: what promoting it takes away from the damage."""
    removed: Array = -shapley(damages, component)
    return removed


@dataclass(frozen=True)
class Paired:
    """Metrics of configurations that were measured on the same sequences.

    Attributes:
        metrics: name to metric.
        resampling: shared by all, so that contrasts are paired.
        counted: name of the sum that says how many elements were compared.
    """

    metrics: Mapping[str, Measure]
    resampling: Resampling
    counted: str = "tokens"

    def estimate(self, sums: Sums, name: str, totals: Totals | None = None) -> Metric:
        """One metric with its interval; ``totals`` as :func:`estimate` takes them."""
        measure = self.metrics[name]
        n = round(float(sums[measure.elements or self.counted].sum()))
        metric = estimate(
            sums, measure.function, self.resampling, n=n, unit=measure.unit, totals=totals
        )
        return within_a_share(metric) if name.endswith(_SHARES) else metric

    def estimates(self, sums: Sums, names: Iterable[str] | None = None) -> dict[str, Metric]:
        """Metrics with their intervals: those of ``names``, by default every one."""
        totals = self.resampling.totals(sums)
        chosen = self.metrics if names is None else names
        return {name: self.estimate(sums, name, totals) for name in chosen}

    def difference(self, first: Sums, second: Sums, name: str) -> Metric:
        """Metric of ``first`` minus that of ``second``."""
        return self._contrast(first, second, name, lambda a, b: a - b, self.metrics[name].unit)

    def healed(self, before: Sums, after: Sums, name: str) -> Metric:
        """Share of a damage that a promotion removes: 1 healed, 0 unchanged, < 0 worse.

        0 where there was no damage (in a resample): nothing was removed.
        """
        return self._contrast(before, after, name, _share_removed, "share removed")

    def error_budget(self, sums: Mapping[Coalition, Sums], name: str) -> ErrorBudget:
        """A damage, split among the components whose promotions were measured.

        Args:
            sums: every set of promoted components to its sums.
        """
        function, unit = self.metrics[name].function, self.metrics[name].unit
        every = {f"{i} {k}": v for i, s in enumerate(sums.values()) for k, v in s.items()}
        totals = self.resampling.totals(every)

        def split(share: Callable[[dict[Coalition, Array]], Array]) -> Metric:
            def of_totals(whole: Totals) -> Array:
                parts = {s: function(Part(whole, f"{i} ")) for i, s in enumerate(sums)}
                return share(parts)

            n = round(float(sums[frozenset()][self.counted].sum()))
            return estimate(every, of_totals, self.resampling, n=n, unit=unit, totals=totals)

        players = [p for s in sums if len(s) == 1 for p in s]  # in the order of the components
        shares = {p: split(partial(_removed, p)) for p in players}
        whole, remaining = split(lambda v: v[frozenset()]), split(lambda v: v[frozenset(players)])
        return ErrorBudget(whole, remaining, shares)

    def _contrast(
        self,
        first: Sums,
        second: Sums,
        name: str,
        compare: Callable[[Array, Array], Array],
        unit: str,
    ) -> Metric:
        function, n = self.metrics[name].function, int(first[self.counted].sum())
        return contrast(first, second, function, compare, self.resampling, n=n, unit=unit)


def within_a_share(metric: Metric) -> Metric:
    """The metric with its interval cut to 0 to 1: widening may leave that range."""
    return replace(metric, low=max(0.0, metric.low), high=min(1.0, metric.high))


@dataclass(frozen=True)
class Rebatched:
    """The damage metric of one configuration in two batch shapes.

    The second time the sequences come in reversed order and in other micro-batches.

    Attributes:
        variance: the damage metric of the second run, measured against the first.
        shift: absolute difference of the damage metric between the two runs, both measured against
            the same truth; in the metric's unit. At most ``variance.value`` for an RMS.
    """

    variance: Metric
    shift: float


def rebatched(paired: Paired, metric: str, moved: Sums, usual: Sums, other: Sums) -> Rebatched:
    """A damage metric in two batch shapes.

    Args:
        moved: of the second run measured against the first.
        usual, other: of the first and of the second run, measured against the truth.
    """
    variance, before, after = (paired.estimate(sums, metric) for sums in (moved, usual, other))
    return Rebatched(variance, abs(after.value - before.value))


def why_inconclusive(cell: Cell, decision: Decision) -> str:
    """Why a cell has no verdict, as a sentence with its figures; "" where it has one."""
    if cell.verdict != INCONCLUSIVE:
        return ""
    damage, floor = cell.metrics[decision.metric], cell.golden_floor
    where, limit = f"{cell.configuration} is inconclusive", f"the limit of {decision.limit:.2g}"
    if floor >= decision.limit:
        return (
            f"{where}: FP32 in another batch shape is off by {floor:.2g} itself, which is at or "
            f"above {limit}. Look for TF32."
        )
    variance = cell.metrics[BATCH_VARIANCE].value
    interval = f"{where}: its interval [{damage.low:.2g}, {damage.high:.2g}]"
    if damage.high <= decision.limit:
        return f"{interval} and its batch variance of {variance:.2g} together pass {limit}."
    if damage.low > decision.limit:
        return f"{interval} less the {floor:.2g} by which FP32 is off itself reaches {limit}."
    return f"{interval} straddles {limit}. {_what_would_decide(damage, decision.limit)}"


def _what_would_decide(damage: Metric, limit: float) -> str:
    """How many clusters would move the interval off the limit, were the estimate the truth.

    The half-width of an interval goes with 1 / sqrt(clusters).
    """
    distance, half = abs(damage.value - limit), (damage.high - damage.low) / 2
    if damage.clusters is None:
        return "Measure on more tokens."
    if half > _TOO_CLOSE * distance:
        return "The estimate lies on the limit, and more sequences would hardly decide it."
    needed = max(damage.clusters + 1, math.ceil(damage.clusters * (half / distance) ** 2))
    return (
        f"{damage.clusters} sequences or prompts cannot decide it; about {needed:,} would, were "
        f"{damage.value:.2g} the true value."
    )
