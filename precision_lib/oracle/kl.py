"""KL penalty estimators of the log-ratio d = policy - ref, and their gradients.

The hazard. exp(-d) - 1 + d is about d^2 / 2: the textbook form loses every digit near the
reference, in float64 as in any format (at |d| = 1e-8). So k3 is taken in mpmath with enough digits
for the cancellation, or by its series where no number of digits is enough.
"""

import math

import mpmath
import numpy as np
from numpy.typing import NDArray

#: Digits where speed does not matter: they hold exp(-200) next to 1 with room to spare.
DIGITS = 100

#: Digits of k3 above the series: at |d| >= 1e-6 the cancellation costs 13 of them, 27 are left.
_K3_DIGITS = 40
_SERIES_BELOW = 1e-6


def k3(log_ratio: float) -> float:
    """exp(-d) - 1 + d, correctly rounded to float64; inf where it exceeds float64."""
    if log_ratio == -math.inf:
        return math.inf  # the exponential outgrows d
    with mpmath.workdps(_K3_DIGITS):
        d = mpmath.mpf(log_ratio)
        if abs(d) < _SERIES_BELOW:  # truncated at d^8 / 8!: 1e-40 of the value
            tail = mpmath.mpf(1)
            for k in range(7, 2, -1):
                tail = 1 - d / k * tail
            return float(d * d / 2 * tail)
        return float(mpmath.exp(-d) - 1 + d)


def kl_penalty(
    policy_logprobs: NDArray[np.floating], ref_logprobs: NDArray[np.floating], estimator: str
) -> NDArray[np.float64]:
    """Per-token estimate: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.

    Args:
        policy_logprobs, ref_logprobs: [...] of one shape, taken as exact.

    Raises:
        ValueError: for an unknown estimator.
    """
    with np.errstate(all="ignore"):
        d = policy_logprobs.astype(np.float64) - ref_logprobs.astype(np.float64)
        if estimator == "k1":
            return d
        if estimator == "k2":
            return d * d / 2
    if estimator == "k3":
        return np.array([k3(float(x)) for x in d.ravel()]).reshape(d.shape)
    raise ValueError(f"unknown KL estimator {estimator!r}; use 'k1', 'k2' or 'k3'")


def kl_penalty_gradient(
    policy_logprobs: NDArray[np.floating],
    ref_logprobs: NDArray[np.floating],
    estimator: str,
    upstream: NDArray[np.floating],
) -> NDArray[np.float64]:
    """d (sum upstream * kl_penalty) / d policy_logprobs: upstream times 1, d or 1 - exp(-d).

    All arrays [...] of one shape. A zero upstream gives 0, also against an infinite slope.

    Raises:
        ValueError: for an unknown estimator.
    """
    up = upstream.astype(np.float64)
    with np.errstate(all="ignore"):
        d = policy_logprobs.astype(np.float64) - ref_logprobs.astype(np.float64)
        slopes = {"k1": np.ones_like(d), "k2": d, "k3": -np.expm1(-d)}
        if estimator not in slopes:
            raise ValueError(f"unknown KL estimator {estimator!r}; use 'k1', 'k2' or 'k3'")
        return np.where(up == 0, 0.0, up * slopes[estimator])
