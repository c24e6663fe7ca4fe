"""One hypothesis over one set of models: its cells when they are asked for, then its verdict.

The hazard. That ``bf16_pure`` is impaired does not say which component did it. So each hypothesis
is asked twice: does promoting its component heal, does demoting it harm. Both are paired on the
same sequences. A promotion that must change nothing, run again, shows what the comparison itself
adds.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from precision_lib.forensics.causal import (
    REFERENCE_RUN,
    Paired,
    Rebatched,
    Sums,
    why_inconclusive,
)
from precision_lib.forensics.evidence import Evidence, Metrics
from precision_lib.forensics.hypothesis import BATCH_VARIANCE, Hypothesis
from precision_lib.forensics.shapley import ErrorBudget, coalitions
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import (
    IMPAIRED,
    Cell,
    Control,
    HypothesisVerdict,
    cell_verdict,
    hypothesis_verdict,
)
from precision_lib.jsonio import Json
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.scoring.micro import AGAIN, FIRST


class Study(ABC):
    """Runs a declared hypothesis. A subclass says how one configuration is measured.

    Attributes:
        hypothesis: the declaration.
        paired: its metrics, over the sequences that it measures on.
    """

    hypothesis: ClassVar[Hypothesis]
    paired: Paired

    # What a hypothesis says of itself.

    @abstractmethod
    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Per-sequence sums of every metric; ``AGAIN``: of forwards that are run once more."""

    @abstractmethod
    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """The damage of a configuration in another order and in other micro-batches."""

    @abstractmethod
    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> Evidence:
        """What a cell shows beside its metrics: curves, controls, formats as observed."""

    @abstractmethod
    def control(self) -> Control:
        """What has to come out null, and whether it did."""

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        """One or two sentences for a reader."""
        healed = contrasts["promotion_damage_healed"]
        return f"The promotion removes {healed.value:.1%} of the damage."

    def context(self) -> dict[str, Json]:
        """What the measurement was made on, for the record's context."""
        return {}

    def metrics(self, configuration: PrecisionConfig) -> dict[str, Metric]:
        """Every metric of a cell with its interval."""
        return self.paired.estimates(self.sums(configuration))

    def repeated(self, configuration: PrecisionConfig, run: str) -> tuple[Sums, Paired]:
        """Sums for the control that measures again, perhaps on fewer sequences."""
        return self.sums(configuration, run), self.paired

    # What every study does alike.

    def cell(self, configuration: PrecisionConfig) -> Cell:
        """Metrics, evidence and verdict.

        Measured once for the formats that the hypothesis runs: two configurations that agree in
        them differ in name only.
        """
        formats = self._formats(configuration)
        if formats not in self._cells:
            metrics = self.metrics(configuration)
            own, golden = self.rebatched(configuration), self.golden_rebatched
            evidence = self.evidence(configuration, metrics)
            self._cells[formats] = cell_of(
                self.hypothesis, configuration, metrics, own, golden, evidence
            )
        return replace(self._cells[formats], configuration=configuration.name)

    def take(self, configuration: PrecisionConfig, cell: Cell) -> None:
        """Use a cell that the same measurement gave before, instead of computing it."""
        self._cells[self._formats(configuration)] = cell

    def sums(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """:meth:`measure`, once for the formats that the hypothesis runs."""
        key = (*self._formats(configuration), run)
        if key not in self._sums:
            self._sums[key] = self.measure(configuration, run)
        return self._sums[key]

    @cached_property
    def _sums(self) -> dict[tuple[str, ...], Sums]:
        return {}

    @cached_property
    def _cells(self) -> dict[tuple[str, ...], Cell]:
        return {}

    def _formats(self, configuration: PrecisionConfig) -> tuple[str, ...]:
        return tuple(map(configuration.decided_by, self.hypothesis.decision.components))

    @cached_property
    def golden_rebatched(self) -> Rebatched:
        """The FP32 path in another order and micro-batch: the noise of the truth."""
        return self.rebatched(REFERENCE_RUN)

    @cached_property
    def looked_at(self) -> tuple[PrecisionConfig, PrecisionConfig, PrecisionConfig]:
        """``bf16_pure`` or its like, the promotion, the demotion: what the verdict hangs on."""
        decision = self.hypothesis.decision
        pure, promoted, demoted = decision.pure, decision.promoted, decision.demoted
        return get_configuration(pure), get_configuration(promoted), get_configuration(demoted)

    def contrasts(self) -> dict[str, Metric]:
        """Promotion, demotion and the irrelevant promotion, paired on the same sequences."""
        decision, paired = self.hypothesis.decision, self.paired
        pure, promoted, demoted = (self.sums(c) for c in self.looked_at)
        usual, fewer = self.repeated(self.looked_at[0], FIRST)
        unrelated, _ = self.repeated(get_configuration(decision.irrelevant), AGAIN)
        contrasts = {
            "promotion_damage_healed": paired.healed(pure, promoted, decision.metric),
            "demotion_damage_added": paired.difference(
                demoted, self.sums(REFERENCE_RUN), decision.metric
            ),
            "irrelevant_promotion_damage_removed": fewer.difference(
                usual, unrelated, decision.metric
            ),
        }
        if decision.symptom:
            contrasts["promotion_symptom_removed"] = paired.difference(
                pure, promoted, decision.symptom
            )
        return contrasts

    def verdict(self) -> HypothesisVerdict:
        """The hypothesis verdict from promotion, demotion and controls."""
        control, contrasts = self.control(), self.contrasts()
        unrelated = contrasts["irrelevant_promotion_damage_removed"]
        is_null = control.is_null and unrelated.low == unrelated.high == 0
        judged = [self.cell(c) for c in self.looked_at]
        decision, healed = self.hypothesis.decision, contrasts["promotion_damage_healed"]
        verdict = hypothesis_verdict(
            *(c.verdict for c in judged),
            healed=healed,
            added=contrasts["demotion_damage_added"],
            control_is_null=is_null,
        )
        reasons = (why_inconclusive(cell, decision) for cell in judged)
        return HypothesisVerdict(
            hypothesis=decision.hypothesis,
            verdict=verdict,
            effect=healed.value,
            effect_unit=healed.unit,
            low=healed.low,
            high=healed.high,
            control=replace(
                control,
                is_null=is_null,
                irrelevant_promotion=decision.irrelevant,
                irrelevant_promotion_damage_removed=unrelated.value,
            ),
            explanation=" ".join(filter(None, (*reasons, self.explanation(contrasts)))),
            contrasts=contrasts,
            error_budget=self.error_budget(),
        )

    def error_budget(self) -> ErrorBudget:
        """The damage in 16 bits, split among the components: all promotions are measured.

        They are made of forwards that the cells need anyway.
        """
        decision, pure = self.hypothesis.decision, self.looked_at[0]
        players = decision.components
        low = {p: pure.format_of(p) for p in players}
        promotions = {
            s: replace(pure, **(low | dict.fromkeys(s, REFERENCE_RUN.policy)))
            for s in coalitions(players)
        }
        return self.paired.error_budget(
            {s: self.sums(c) for s, c in promotions.items()}, decision.metric
        )


def cell_of(
    hypothesis: Hypothesis,
    configuration: PrecisionConfig,
    metrics: dict[str, Metric],
    own: Rebatched,
    golden: Rebatched,
    evidence: Evidence,
) -> Cell:
    """A cell with the verdict that its damage metric, the limit and both floors give.

    Args:
        own: of the configuration. golden: of ``fp32_baseline``, which it is measured against.
    """
    decision = hypothesis.decision
    if hypothesis.nonfinite and metrics[hypothesis.nonfinite].value > 0:
        verdict = IMPAIRED
    else:
        verdict = cell_verdict(
            metrics[decision.metric],
            decision.limit,
            golden_floor=golden.variance.value,
            batch_variance=own.variance.value,
        )
    return Cell(
        decision.hypothesis,
        configuration.name,
        verdict,
        metrics | {BATCH_VARIANCE: own.variance},
        replace(evidence, golden_floor=golden.variance, batch_shift=own.shift),
    )
