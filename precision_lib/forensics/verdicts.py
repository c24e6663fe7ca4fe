"""The decision table and the rules that turn an interval into a verdict.

The hazard. A threshold picked after the measurement passes whatever one likes. Here each decision
threshold stands once, with its meaning, and was written down before the measurement; error bounds
are computed elsewhere. A verdict is three-valued, because "not enough data" is neither healthy nor
impaired. What makes a measurement uncertain is the noise of the FP32 truth that it is measured
against. That a bf16 model does not repeat itself in another batch shape is a finding with a number
of its own.
"""

from dataclasses import dataclass
from typing import Any

from precision_lib.forensics.statistics import Metric

HEALTHY, IMPAIRED, INCONCLUSIVE = "healthy", "impaired", "inconclusive"
SUPPORTED, PARTLY, REFUTED = "supported", "partly supported", "refuted"


@dataclass(frozen=True)
class Decision:
    """One row of the decision table.

    Attributes:
        hypothesis: H1 to H4.
        title: what the hypothesis is called.
        metric: the damage metric that decides.
        symptom: the metric that people look at instead; "" where there is none.
        limit: a cell is impaired above it.
        meaning: what the number says in words.
        components: of the pipeline, those that the hypothesis runs.
        promoted: ``bf16_pure`` with the component in question in FP32.
        demoted: ``fp32_baseline`` with the component in question in bf16.
        irrelevant: a promotion of a component that the hypothesis does not run.
    """

    hypothesis: str
    title: str
    metric: str
    symptom: str
    limit: float
    meaning: str
    components: tuple[str, ...]
    promoted: str
    demoted: str
    irrelevant: str


#: True KL per token, nats, at which H1 and H4 are decided: a log-ratio of 1.4 % RMS, the first
#: updates away from the reference, where H1 says that the signal is lost.
H1_OPERATING_KL = 1e-4

#: Damage metric of a configuration against itself in another order and in other micro-batches.
BATCH_VARIANCE = "batch_variance"

#: One rule for all four: impaired is where the power of the error is 10 % of the signal's.
TENTH_OF_THE_POWER = 0.1**0.5

DECISIONS: dict[str, Decision] = {
    d.hypothesis: d
    for d in (
        Decision(
            hypothesis="H1",
            title="KL collapse",
            metric="log_ratio_nsr",
            symptom="log_ratio_near_zero_frac",
            limit=TENTH_OF_THE_POWER,
            meaning=(
                "error power is 10 % of signal power at a true KL of 1e-4 nats per token: k2 and "
                "k3 then overstate the KL by 10 %, and one tenth of the penalty's gradient is noise"
            ),
            components=("policy", "reference", "kl"),
            promoted="bf16_fp32_kl",
            demoted="fp32_bf16_kl",
            irrelevant="bf16_fp32_reward",
        ),
        Decision(
            hypothesis="H2",
            title="reward quantization",
            metric="advantage_rms_error",
            symptom="reward_tie_frac",
            limit=TENTH_OF_THE_POWER,
            meaning=(
                "the error of group-normalised advantages has 10 % of their power: one tenth of "
                "the policy gradient's weight is noise"
            ),
            components=("reward",),
            promoted="bf16_fp32_reward",
            demoted="fp32_bf16_reward",
            irrelevant="bf16_fp32_kl",
        ),
        Decision(
            hypothesis="H3",
            title="value-head instability",
            metric="advantage_rms_error",
            symptom="value_stagnation_rate",
            limit=TENTH_OF_THE_POWER,
            meaning=(
                "whitened GAE advantages have a variance of 1, so an RMS error of 0.32 is 10 % of "
                "their power: one tenth of the policy gradient's weight is noise"
            ),
            components=("policy", "value"),
            promoted="bf16_fp32_value",
            demoted="fp32_bf16_value",
            irrelevant="bf16_fp32_kl",
        ),
        Decision(
            hypothesis="H4",
            title="reference drift",
            metric="accum_err_final",
            symptom="",
            limit=TENTH_OF_THE_POWER,
            meaning=(
                "a log-ratio summed over the sequence that is off by 0.32 nats RMS: sequence-level "
                "importance weights lose 1 - exp(-0.1) = 10 % of their effective sample size"
            ),
            components=("policy", "reference", "kl"),
            promoted="bf16_fp32_ref",
            demoted="fp32_bf16_ref",
            irrelevant="bf16_fp32_reward",
        ),
    )
}


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
    """

    hypothesis: str
    verdict: str
    effect: Metric
    control: dict[str, Any]
    explanation: str
    contrasts: dict[str, Metric]

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
    if golden_floor >= limit:
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
