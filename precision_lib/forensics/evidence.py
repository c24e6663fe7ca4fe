"""What a cell shows beside its metrics, by hypothesis: curves, causes, laws, controls.

Metrics of a point are named as those of the cell, so that one function shows both. What a
hypothesis without a type here measures is kept as it is, under ``more``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from precision_lib.forensics.h2.rewards import (
    NativeRewards,
    RewardReplay,
    StoringLaw,
    SyntheticRewards,
)
from precision_lib.forensics.statistics import Metric
from precision_lib.jsonio import FLAT, Json
from precision_lib.metrics.drift import PositionRange, StoredSum
from precision_lib.metrics.rollout import ProbabilityBin

Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class Evidence:
    """What every cell says.

    Attributes:
        true_kl: KL(policy || reference) at the operating point, nats per token.
        measured_against: format of the truth, ``fp32`` or ``fp64``.
        observed_formats: component to its format at run time, None where it did not run.
        golden_floor: the damage metric of the FP32 truth against itself in another batch shape.
        batch_shift: difference of the damage metric between two batch shapes, in its unit.
        more: what no type here names.
    """

    true_kl: float | None = None
    measured_against: str = ""
    observed_formats: Mapping[str, str | None] = field(default_factory=dict)
    golden_floor: Metric | None = None
    batch_shift: float | None = None
    more: Mapping[str, Json] = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class IdenticalWeights:
    """Log-ratio of a policy whose weights equal the reference's: 0 where the formats agree."""

    same_format: bool
    nonzero: int
    n: int
    log_ratio_rms: float | None = None
    accum_err_final: float | None = None
    drift_nats_per_1000_tokens: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """H1's metrics at one true KL, nats per token."""

    target_kl: float
    true_kl: float
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class H1Evidence(Evidence):
    """H1: the collapse curve, the metrics by response length, what rounding predicts."""

    executed_kl: float | None = None
    kl_penalty_mean_float64: float | None = None
    identical_weights: IdenticalWeights | None = None
    curve: tuple[CurvePoint, ...] = ()
    by_length: Mapping[int, Metrics] = field(default_factory=dict)
    log_ratio_near_zero_frac_predicted: float | None = None
    log_ratio_nsr_by_rounding: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class H2Evidence(Evidence):
    """H2: causes one at a time, the law of storing, synthetic rewards."""

    golden_observed_format: str = ""
    native: NativeRewards | None = None
    causes: Mapping[str, Metrics] = field(default_factory=dict)
    storing_law: StoringLaw | None = None
    fp32_replay: RewardReplay | None = None
    synthetic: SyntheticRewards | None = None


@dataclass(frozen=True)
class Critic:
    """The value head that was fitted; values in reward units."""

    explained_variance: Metric
    refitted_held_out_explained_variance: float
    refitted_ridge: float
    value_rms: float
    value_mean: float
    return_std: float


@dataclass(frozen=True)
class Magnitude:
    """H3's metrics where rewards are scaled to an RMS value of ``magnitude``."""

    magnitude: float
    twin_moves: int
    value_stagnation_rate_predicted: float
    advantage_rms_error_predicted: float
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class Offset:
    """H3's metrics where rewards are moved by so many spreads."""

    offset_over_spread: float
    advantage_rms_error_predicted: float
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class Cause:
    """H3's metrics with a single rounding."""

    rewards: str
    cause: str
    update_error: float
    value_stagnation_rate_predicted: float | None = None
    advantage_rms_error_predicted: float | None = None
    step_over_spread: float | None = None
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class H3Evidence(Evidence):
    """H3: values of every size and offset, and the three places where a head rounds."""

    critic: Critic | None = None
    by_magnitude: tuple[Magnitude, ...] = ()
    by_offset: tuple[Offset, ...] = ()
    critical_offset_over_spread: float | None = None
    critical_offset_over_spread_predicted: float | None = None
    causes: tuple[Cause, ...] = ()
    critical_magnitude_reached: bool | None = None


@dataclass(frozen=True)
class AccumulatedError:
    """The log-ratio's error summed over a sequence."""

    by_position: tuple[PositionRange, ...]
    components: Mapping[str, Metrics]
    error_correlation_of_components: float
    sequence_ratio_ess_gaussian: float
    outside_gspo_band_frac: float
    reference_sequence_logprob_error: StoredSum
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class PolicyDrift:
    """The policy's log-prob alone against FP32, beside what theory expects."""

    by_position: tuple[PositionRange, ...]
    standard_errors_from_expected: float
    standard_errors_from_none: float
    critical_length_derived: float | None = None
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class H4Evidence(Evidence):
    """H4: how errors add up on sampled tokens, and the drift by the kind of text."""

    growth_laws_within: tuple[str, ...] = ()
    identical_weights: IdenticalWeights | None = None
    buffers: Json = None
    sampled: AccumulatedError | None = None
    expected_policy_drift: Mapping[str, PolicyDrift] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutFormat:
    """A rollout format beside a cell's trainer; RMS of d, of both errors added in quadrature."""

    rms: float
    quadrature_rms: float
    quadrature_z: float
    correlation: float
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class H5Evidence(Evidence):
    """H5: d = trainer - rollout log-prob by position, by probability, by format; the laws."""

    rms_growth_exponent: Metric | None = None
    by_position: tuple[PositionRange, ...] = ()
    by_probability: tuple[ProbabilityBin, ...] = ()
    halves: Mapping[str, float] = field(default_factory=dict)
    laws: Mapping[str, float] = field(default_factory=dict)
    formats: Mapping[str, RolloutFormat] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredLaws:
    """Weights of one step: those that moved, and those that contradict a law of storing.

    The laws stand in :mod:`precision_lib.metrics.absorption`.
    """

    n: int
    undecided: int
    moved: int
    exceptions: int
    off_nearest: int


@dataclass(frozen=True)
class MasterFormat:
    """H6's metrics where the optimizer's weights are stored in a format, beside a cell's policy."""

    laws: StoredLaws
    metrics: Metrics = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class CopyLaw:
    """Copies of FP32 masters that moved in the first step, of n; what the law expects."""

    n: int
    moved: int
    expected: float
    variance: float
    z: float | None = None


@dataclass(frozen=True)
class FirstStep:
    """Share of stored weights that the first step moves, scaled to a learning rate."""

    learning_rate: float
    moved_frac: float


@dataclass(frozen=True)
class H6Evidence(Evidence):
    """H6: the change of log-probs (RMS, nats), by format of the masters; laws and first step."""

    logprob_change_rms: float | None = None
    skipped_steps: int = 0
    weights: int = 0
    masters: Mapping[str, MasterFormat] = field(default_factory=dict)
    copies: Mapping[str, CopyLaw] = field(default_factory=dict)
    first_step: Mapping[str, tuple[FirstStep, ...]] = field(default_factory=dict)


#: The type of a cell's evidence; a hypothesis without a row has the common fields alone.
BY_HYPOTHESIS: Mapping[str, type[Evidence]] = {
    "H1": H1Evidence,
    "H2": H2Evidence,
    "H3": H3Evidence,
    "H4": H4Evidence,
    "H5": H5Evidence,
    "H6": H6Evidence,
}
