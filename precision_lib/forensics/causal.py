"""From cells to a causal claim: paired contrasts, the null controls, one way for every hypothesis.

The hazard. That ``bf16_pure`` is impaired does not say which component did it. So each hypothesis
is asked twice: does promoting its component heal, does demoting it harm. Both are paired on the
same sequences. A promotion that must change nothing, run again, shows what the comparison itself
adds.

N sequences, R resamples; sums are name to [N] totals per sequence.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.forensics.statistics import (
    Array,
    Metric,
    MetricFunction,
    Resampling,
    Totals,
    contrast,
    estimate,
)
from precision_lib.forensics.verdicts import (
    BATCH_VARIANCE,
    DECISIONS,
    IMPAIRED,
    INCONCLUSIVE,
    Cell,
    HypothesisVerdict,
    cell_verdict,
    hypothesis_verdict,
)
from precision_lib.matrix import PrecisionConfig, get_configuration

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


class Study(Protocol):
    """One hypothesis over one set of frozen tokens: what tests, commands and records call."""

    def cell(self, configuration: PrecisionConfig) -> Cell:
        """Metrics, evidence and verdict of a configuration; computed once."""

    def take(self, configuration: PrecisionConfig, cell: Cell) -> None:
        """Use a cell that the same measurement gave before, instead of computing it."""

    def verdict(self) -> HypothesisVerdict:
        """The hypothesis verdict from promotion, demotion and controls."""

    def context(self) -> dict[str, Any]:
        """What the measurement was made on, for the record's context."""


@dataclass(frozen=True)
class Paired:
    """Metrics of configurations that were measured on the same sequences.

    Attributes:
        metrics: name to (function of totals, unit).
        resampling: shared by all, so that contrasts are paired.
        counted: name of the sum that says how many elements were compared.
    """

    metrics: dict[str, tuple[MetricFunction, str]]
    resampling: Resampling
    counted: str = "tokens"

    def estimate(self, sums: Sums, name: str, totals: Totals | None = None) -> Metric:
        """One metric with its interval; ``totals`` as :func:`estimate` takes them."""
        function, unit = self.metrics[name]
        n = self._n(sums)
        metric = estimate(sums, function, self.resampling, n=n, unit=unit, totals=totals)
        return within_a_share(metric) if name.endswith(_SHARES) else metric

    def estimates(self, sums: Sums, names: Iterable[str] | None = None) -> dict[str, Metric]:
        """Metrics with their intervals: those of ``names``, by default every one."""
        totals = self.resampling.totals(sums)
        chosen = self.metrics if names is None else names
        return {name: self.estimate(sums, name, totals) for name in chosen}

    def difference(self, first: Sums, second: Sums, name: str) -> Metric:
        """Metric of ``first`` minus that of ``second``."""
        return self._contrast(first, second, name, lambda a, b: a - b, self.metrics[name][1])

    def healed(self, before: Sums, after: Sums, name: str) -> Metric:
        """Share of a damage that a promotion removes: 1 healed, 0 unchanged, < 0 worse.

        0 where there was no damage (in a resample): nothing was removed.
        """
        return self._contrast(before, after, name, _share_removed, "share removed")

    def _contrast(
        self,
        first: Sums,
        second: Sums,
        name: str,
        compare: Callable[[Array, Array], Array],
        unit: str,
    ) -> Metric:
        function, n = self.metrics[name][0], self._n(first)
        return contrast(first, second, function, compare, self.resampling, n=n, unit=unit)

    def _n(self, sums: Sums) -> int:
        return int(sums[self.counted].sum())


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


def cell_of(
    hypothesis: str,
    configuration: PrecisionConfig,
    metrics: dict[str, Metric],
    own: Rebatched,
    golden: Rebatched,
    evidence: dict[str, Any],
    nonfinite: bool = False,
) -> Cell:
    """A cell with the verdict that its damage metric, the limit and both floors give.

    Args:
        own: of the configuration. golden: of ``fp32_baseline``, which it is measured against.
        nonfinite: something came out inf or NaN; the cell is impaired whatever the rest says.
    """
    decision = DECISIONS[hypothesis]
    verdict = (
        IMPAIRED
        if nonfinite
        else cell_verdict(
            metrics[decision.metric],
            decision.limit,
            golden_floor=golden.variance.value,
            batch_variance=own.variance.value,
        )
    )
    return Cell(
        hypothesis,
        configuration.name,
        verdict,
        metrics | {BATCH_VARIANCE: own.variance},
        evidence | {"golden_floor": golden.variance.as_json(), "batch_shift": own.shift},
    )


def causal_verdict(
    hypothesis: str,
    cell: Callable[[PrecisionConfig], Cell],
    sums: Callable[[PrecisionConfig, bool], Sums],
    paired: Paired,
    control: dict[str, Any],
    explanation: Callable[[dict[str, Metric]], str],
    repeated: tuple[Callable[[PrecisionConfig, bool], Sums], Paired] | None = None,
) -> HypothesisVerdict:
    """The verdict of a hypothesis from its promotion, its demotion and its controls.

    Args:
        cell: the cell of a configuration.
        sums: per-sequence sums of a configuration; True: from forwards that are run once more.
        control: the hypothesis's own null controls, with ``is_null``.
        explanation: one or two sentences for a reader, from the contrasts.
        repeated: the same as ``sums`` and ``paired`` on fewer sequences, for the control that runs
            its forwards again; default: on all of them.
    """
    decision = DECISIONS[hypothesis]
    promoted, demoted, irrelevant = map(
        get_configuration, (decision.promoted, decision.demoted, decision.irrelevant)
    )
    damage = decision.metric
    repeat, again = repeated or (sums, paired)
    pure = sums(PURE, False)
    contrasts = {
        "promotion_damage_healed": paired.healed(pure, sums(promoted, False), damage),
        "demotion_damage_added": paired.difference(
            sums(demoted, False), sums(REFERENCE_RUN, False), damage
        ),
        "irrelevant_promotion_damage_removed": again.difference(
            repeat(PURE, False), repeat(irrelevant, True), damage
        ),
    }
    if decision.symptom:
        contrasts["promotion_symptom_removed"] = paired.difference(
            pure, sums(promoted, False), decision.symptom
        )
    unrelated = contrasts["irrelevant_promotion_damage_removed"]
    is_null = bool(control["is_null"]) and unrelated.low == unrelated.high == 0
    judged = [cell(c) for c in (PURE, promoted, demoted)]
    verdict = hypothesis_verdict(
        *(c.verdict for c in judged),
        healed=contrasts["promotion_damage_healed"],
        added=contrasts["demotion_damage_added"],
        control_is_null=is_null,
    )
    reasons = map(why_inconclusive, judged)
    return HypothesisVerdict(
        hypothesis=hypothesis,
        verdict=verdict,
        effect=contrasts["promotion_damage_healed"],
        control=control
        | {
            "irrelevant_promotion": irrelevant.name,
            "irrelevant_promotion_damage_removed": unrelated.value,
            "is_null": is_null,
        },
        explanation=" ".join(filter(None, (*reasons, explanation(contrasts)))),
        contrasts=contrasts,
    )


def why_inconclusive(cell: Cell) -> str:
    """Why a cell has no verdict, as a sentence with its figures; "" where it has one."""
    if cell.verdict != INCONCLUSIVE:
        return ""
    decision = DECISIONS[cell.hypothesis]
    damage, floor = cell.metrics[decision.metric], cell.evidence["golden_floor"]["value"]
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
