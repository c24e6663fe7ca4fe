"""What H2's evidence says of rewards: the model's own, FP32 again, stored, and synthetic ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from precision_lib.forensics.statistics import Metric


@dataclass(frozen=True)
class NativeRewards:
    """Where the model's own rewards lie, in reward units and in spreads within a group."""

    reward_mean: float
    offset: float
    within_group_std: float
    batch_std: float
    offset_over_spread: float
    resolution_over_spread: float


@dataclass(frozen=True)
class StoringLaw:
    """RMS advantage error of storing alone; None where the law covers too few groups."""

    groups: int
    of: int
    measured: float | None = None
    predicted: float | None = None
    shortfall: float | None = None
    z: float | None = None


@dataclass(frozen=True)
class RewardReplay:
    """FP32 rewards again, and against those that were frozen."""

    n: int
    again_differs: int
    stored_differs: int
    stored_distance: float
    fp32_noise: float
    is_null: bool


@dataclass(frozen=True)
class RewardFamily:
    """Synthetic rewards of a known distribution, stored in the cell's format."""

    rewards: str
    reward_resolution_median: float
    reward_tie_frac: float
    reward_kendall_tau: float
    advantage_rms_error: float
    advantage_sign_flip_frac: float
    batch_advantage_rms_error: float
    reward_nonfinite_frac: float
    advantage_rms_error_interval: tuple[float, float]
    offset_over_spread: float | None = None
    step_over_spread: float | None = None
    advantage_rms_error_predicted: float | None = None


@dataclass(frozen=True)
class CriticalOffset:
    """Offset over spread at which the damage passes the limit, for one spread."""

    spread: float
    predicted: float
    measured: Metric


@dataclass(frozen=True)
class CriticalOffsets:
    """The critical offset by the phase of the spread in its binade."""

    limit: float
    predicted_range: tuple[float, float]
    by_spread: tuple[CriticalOffset, ...]


@dataclass(frozen=True)
class SyntheticRewards:
    """Rewards drawn from known distributions."""

    groups: int
    samples_per_group: int
    families: tuple[RewardFamily, ...]
    critical_offset_over_spread: CriticalOffsets | None = None
    openrlhf_1334_group_statistics_in_bf16: Mapping[str, tuple[float, ...]] = field(
        default_factory=dict
    )
