"""The rules that turn an interval into a verdict.

The hazard. A threshold picked after the measurement passes whatever one likes. So each hypothesis
declares its threshold once, with its meaning, before anything is measured; error bounds are
computed elsewhere. A verdict is three-valued, because "not enough data" is neither healthy nor
impaired. What makes a measurement uncertain is the noise of the FP32 truth that it is measured
against. That a bf16 model does not repeat itself in another batch shape is a finding with a number
of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from precision_lib.forensics.evidence import BY_HYPOTHESIS, Evidence, IdenticalWeights
from precision_lib.forensics.h2.rewards import RewardReplay
from precision_lib.forensics.shapley import ErrorBudget
from precision_lib.forensics.statistics import Metric
from precision_lib.jsonio import FLAT, KIND, Json

HEALTHY, IMPAIRED, INCONCLUSIVE = "healthy", "impaired", "inconclusive"
SUPPORTED, PARTLY, REFUTED = "supported", "partly supported", "refuted"
E = TypeVar("E", bound=Evidence)


def _evidence_of(cell: Mapping[str, Json]) -> type[Evidence]:
    """The type of the evidence of a cell as JSON holds it."""
    return BY_HYPOTHESIS.get(str(cell.get("hypothesis")), Evidence)


@dataclass(frozen=True)
class Cell:
    """Hypothesis x configuration: verdict, metrics at the operating point, evidence."""

    hypothesis: str
    configuration: str
    verdict: str
    metrics: Mapping[str, Metric]
    evidence: Evidence = field(metadata={KIND: _evidence_of})

    @property
    def key(self) -> tuple[str, str]:
        """(hypothesis, configuration)."""
        return self.hypothesis, self.configuration

    @property
    def name(self) -> str:
        """``H1 bf16_pure``."""
        return " ".join(self.key)

    @property
    def golden_floor(self) -> float:
        """The damage metric of the FP32 truth against itself in another batch shape."""
        assert self.evidence.golden_floor is not None
        return self.evidence.golden_floor.value

    def shows(self, kind: type[E]) -> E:
        """The evidence, as that of its hypothesis.

        Raises:
            TypeError: it is of another hypothesis.
        """
        if not isinstance(self.evidence, kind):
            raise TypeError(f"the evidence of {self.name} is no {kind.__name__}")
        return self.evidence


@dataclass(frozen=True)
class ExactRewards:
    """Rewards of few exact values: squared error by distribution and format, which must be 0."""

    squared_error: Mapping[str, float]
    is_null: bool


@dataclass(frozen=True)
class Control:
    """What had to come out null, and whether all of it did; counts of what did not, and of all."""

    is_null: bool
    irrelevant_promotion: str = ""
    irrelevant_promotion_damage_removed: float | None = None
    identical_weights_nonzero: int | None = None
    identical_weights_n: int | None = None
    fp32_replay: RewardReplay | None = None
    exact_rewards: ExactRewards | None = None
    golden_values_beyond_rounding: int | None = None
    golden_values_n: int | None = None
    golden_head_against_itself_stagnant: int | None = None
    trainer_beside_itself_nonzero: int | None = None
    trainer_beside_itself_n: int | None = None
    fp32_masters_nonzero: int | None = None
    fp32_masters_n: int | None = None
    more: Mapping[str, Json] = field(default_factory=dict, metadata=FLAT)


def identical_control(weights: Sequence[IdenticalWeights]) -> Control:
    """Policies with the reference's weights, in one format: no log-ratio may differ from 0."""
    nonzero = sum(w.nonzero for w in weights)
    return Control(
        is_null=nonzero == 0,
        identical_weights_nonzero=nonzero,
        identical_weights_n=sum(w.n for w in weights),
    )


@dataclass(frozen=True)
class HypothesisVerdict:
    """What the contrasts say about a hypothesis.

    Attributes:
        effect, effect_unit, low, high: the promotion contrast with its interval.
        control: what had to come out null, and whether it did.
        explanation: one or two sentences for a reader.
        contrasts: name to paired contrast.
        error_budget: the damage of the configuration that is promoted, split among components; None
            in an earlier record.
    """

    hypothesis: str
    verdict: str
    effect: float
    effect_unit: str
    low: float
    high: float
    control: Control
    explanation: str
    contrasts: Mapping[str, Metric]
    error_budget: ErrorBudget | None = None


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
