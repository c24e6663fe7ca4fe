"""Which way each metric gets worse, and on which scale two of its values are compared.

The hazard. A gate that flags every change punishes improvements, and one that compares all
metrics alike calls a step of a number format, which can only double, a regression by 100 %. So
each metric of a cell has one row here; a metric without a row stops the gate.

Scales:

``ratio``       an RMS or a magnitude: as a factor, on the scale of its logarithm
``difference``  a share or a rank correlation: as a difference
``magnitude``   has a sign, and 0 is best: the difference of the absolute values
``step``        a median of steps of a number format: a factor, and one doubling is no change, since
                the binade that the median lies in depends on the tokens that were drawn
``exact``       0 by construction: anything above it is a regression
"""

import math
from dataclasses import dataclass

from precision_lib.forensics.verdicts import BATCH_VARIANCE


@dataclass(frozen=True)
class Direction:
    """How a metric is gated.

    Attributes:
        scale: see the module; "" for a metric that is recorded and not gated.
        worse: +1 where more is worse, -1 where less is.
        best: the value without any error; a distance from it is an error.
        absent: what a cell without this metric counts as; None where that is an error.
        kl_exponent: how the metric follows the true KL at which it was measured, which another
            seed's policy misses by some 10 %: the noise is the same, the signal its square root.
        reason: why a metric is not gated.
    """

    scale: str
    worse: int = 1
    best: float = 0.0
    absent: float | None = None
    kl_exponent: float = 0.0
    reason: str = ""


def _not_gated(reason: str) -> Direction:
    return Direction("", reason=reason)


_RATIO, _SHARE, _EXACT, _STEP = (
    Direction(scale) for scale in ("ratio", "difference", "exact", "step")
)
_AGREEMENT = Direction("difference", worse=-1, best=1.0)
_VARIANCE = Direction("difference")
_TEXTBOOK = _not_gated("of a formula that the core does not use")

DIRECTIONS: dict[str, dict[str, Direction]] = {
    "H1": {
        "kl_penalty_mean": _not_gated("neither way is worse: kl_k3_rel_error says how wrong it is"),
        "log_ratio_near_zero_frac": Direction("difference", kl_exponent=-0.5),
        "log_ratio_nsr": Direction("ratio", kl_exponent=-0.5),
        "kl_k3_rel_error": Direction("magnitude", kl_exponent=-1.0),
        "k3_negative_frac": _EXACT,
        "k3_textbook_rel_error": _TEXTBOOK,
        "k3_textbook_negative_frac": _TEXTBOOK,
        "log_ratio_nonfinite_frac": _EXACT,
        BATCH_VARIANCE: Direction("difference", kl_exponent=-0.5),
    },
    "H2": {
        "reward_resolution_median": _STEP,
        "reward_tie_frac": _SHARE,
        "reward_kendall_tau": _AGREEMENT,
        "advantage_rms_error": _RATIO,
        "advantage_sign_flip_frac": _SHARE,
        "batch_advantage_rms_error": _RATIO,
        "reward_nonfinite_frac": _EXACT,
        BATCH_VARIANCE: _VARIANCE,
    },
    "H3": {
        "value_stagnation_rate": _SHARE,
        "value_td_zero_frac": _SHARE,
        "advantage_rms_error": _RATIO,
        "value_nonfinite_frac": _EXACT,
        "value_quant_step_median": _STEP,
        "value_critical_magnitude": Direction(
            "ratio", worse=-1, best=math.inf, absent=math.inf
        ),  # absent: stagnation never reached one half
        BATCH_VARIANCE: _VARIANCE,
    },
    "H4": {
        "accum_err_final": _RATIO,
        "accum_err_growth_exponent": _not_gated("a rate of growth, also of an error that shrank"),
        "drift_nats_per_1000_tokens": Direction("magnitude"),
        "log_ratio_rms_error": _RATIO,
        "sequence_ratio_ess": _not_gated(
            "of so few sequences that its limit lies below what it can reach; it is made of "
            "accum_err_final"
        ),
        "log_ratio_nonfinite_frac": _EXACT,
        BATCH_VARIANCE: _VARIANCE,
    },
}


def direction(hypothesis: str, metric: str) -> Direction:
    """The row of a metric.

    Raises:
        ValueError: a metric without one, so that nobody adds a metric that no gate looks at.
    """
    try:
        return DIRECTIONS[hypothesis][metric]
    except KeyError:
        raise ValueError(
            f"{hypothesis} {metric} has no direction: say in compare/directions.py which way it "
            "gets worse"
        ) from None


def worst_possible(metric: str, unit: str) -> float:
    """As bad as a metric can be at all: a limit beyond it could never be passed."""
    if metric == "reward_kendall_tau":
        return -1.0
    if metric == "value_critical_magnitude":
        return 0.0
    return 1.0 if unit.startswith("share of") else math.inf
