"""The rules that turn an interval into a verdict.

The hazard. A threshold picked after the measurement passes whatever one likes. So each hypothesis
declares its threshold once, with its meaning, before anything is measured; error bounds are
computed elsewhere. A verdict is three-valued, because "not enough data" is neither healthy nor
impaired. What makes a measurement uncertain is the noise of the FP32 truth that it is measured
against. That a bf16 model does not repeat itself in another batch shape is a finding with a number
of its own.
"""

from dataclasses import dataclass
from typing import Any

from precision_lib.forensics.shapley import ErrorBudget
from precision_lib.forensics.statistics import Metric

HEALTHY, IMPAIRED, INCONCLUSIVE = "healthy", "impaired", "inconclusive"
SUPPORTED, PARTLY, REFUTED = "supported", "partly supported", "refuted"


@dataclass(frozen=True)
class Cell:
    """Hypothesis x configuration.

    ``metrics`` stand at the hypothesis's operating point; ``evidence`` is JSON-ready detail
    (curves, controls, dtypes as observed).
    """

    hypothesis: str
    configuration: str
    verdict: str
    metrics: dict[str, Metric]
    evidence: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "hypothesis": self.hypothesis,
            "configuration": self.configuration,
            "verdict": self.verdict,
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
            "evidence": self.evidence,
        }


@dataclass(frozen=True)
class HypothesisVerdict:
    """What the contrasts say about a hypothesis.

    Attributes:
        effect: promotion contrast, named by its unit.
        control: what had to come out null, and whether it did.
        explanation: one or two sentences for a reader.
        error_budget: the damage of the configuration that is promoted, split among components.
    """

    hypothesis: str
    verdict: str
    effect: Metric
    control: dict[str, Any]
    explanation: str
    contrasts: dict[str, Metric]
    error_budget: ErrorBudget | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "hypothesis": self.hypothesis,
            "verdict": self.verdict,
            "effect": self.effect.value,
            "effect_unit": self.effect.unit,
            "low": self.effect.low,
            "high": self.effect.high,
            "control": self.control,
            "explanation": self.explanation,
            "contrasts": {name: m.as_json() for name, m in self.contrasts.items()},
            "error_budget": self.error_budget and self.error_budget.as_json(),
        }


def cell_verdict(
    metric: Metric, limit: float, *, golden_floor: float, batch_variance: float
) -> str:
    """Verdict of one damage metric against its limit.

    Args:
        metric: the damage, with its 95 % interval.
        limit: in the metric's unit; a cell is impaired above it.
        golden_floor: the damage metric of the FP32 path against itself in another batch shape, in
            the metric's unit: how uncertain the truth is that ``metric`` is measured against.
        batch_variance: the same of the cell's own configuration.

    Returns:
        ``inconclusive`` where the golden floor is at or above the limit, ``impaired`` where
        low - golden_floor > limit, ``healthy`` where high + batch_variance <= limit, else
        ``inconclusive``. Another batch shape draws another realisation of the same rounding errors,
        so a large batch variance cannot excuse a damage; it can only keep a cell from being
        healthy.
    """
    if not golden_floor < limit:  # NaN too
        return INCONCLUSIVE
    if metric.low - golden_floor > limit:
        return IMPAIRED
    return HEALTHY if metric.high + batch_variance <= limit else INCONCLUSIVE


def hypothesis_verdict(
    pure: str,
    promoted: str,
    demoted: str,
    *,
    healed: Metric,
    added: Metric,
    control_is_null: bool,
) -> str:
    """Verdict of a hypothesis from its cells and its paired contrasts.

    Args:
        pure: verdict of ``bf16_pure``.
        promoted: verdict of ``bf16_pure`` with the one component promoted to FP32.
        demoted: verdict of ``fp32_baseline`` with the one component demoted to bf16.
        healed: share of the damage that promotion removes, paired.
        added: damage that demotion adds, paired.
        control_is_null: whether every control came out null.

    Returns:
        Promotion *heals* when it takes an impaired pipeline to healthy and its contrast excludes 0;
        demotion *harms* when it takes the healthy pipeline to impaired and its contrast does.
        ``supported`` when both hold, ``partly supported`` when one does, ``refuted`` when neither;
        ``inconclusive`` when a cell is, or when a control is not null, because then the contrasts
        measure something else as well.
    """
    if not control_is_null or INCONCLUSIVE in (pure, promoted, demoted):
        return INCONCLUSIVE
    heals = pure == IMPAIRED and promoted == HEALTHY and healed.low > 0
    harms = demoted == IMPAIRED and added.low > 0
    if heals and harms:
        return SUPPORTED
    return PARTLY if heals or harms else REFUTED
