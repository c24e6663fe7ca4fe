"""Bounds of the KL estimators of d = policy - ref, and of their gradients.

The textbook form exp(-d) - 1 + d rounds numbers of size 1: its error is about u whatever d is. The
bounds here are those of the form expm1(-d) + d, about 2u |d| near 0, which the textbook form
exceeds for |d| < 1e-2. So k3 = d^2 / 2 may come out as 0 below |d| = 4u = 2.4e-7, and not above.
"""

import torch
from torch import Tensor

from precision_lib.bounds.model import (
    EXPM1_ERROR_NEAR_0,
    EXPM1_NEAR_0,
    FP32,
    FUNCTION_ERROR,
    gammas,
    infinite_beyond,
)
from precision_lib.formats import Format


def _log_ratio(policy: Tensor, ref: Tensor) -> Tensor:
    return policy.double() - ref.double()


def _k3(d: Tensor) -> Tensor:
    """exp(-d) - 1 + d to a few float64 roundings: good enough as a factor of u."""
    near = d.abs() < 1e-3
    small = torch.where(near, d, torch.zeros_like(d))
    return torch.where(near, small * small / 2 * (1 - small / 3), torch.expm1(-d) + d)


def _expm1_error(d: Tensor, fmt: Format) -> Tensor:
    """Relative error of expm1(-d), that of a rounded d included."""
    near = d.abs() <= EXPM1_NEAR_0
    # FP32 does subtract exactly where the exact difference is an FP32 number; others are not asked.
    exact = (d.float().double() == d) if fmt is FP32 else torch.zeros_like(near)
    of_argument = torch.where(near & exact, torch.zeros_like(d), 2 * d.abs())
    function = torch.where(near, float(EXPM1_ERROR_NEAR_0), float(FUNCTION_ERROR)).double()
    roundings = function + of_argument
    return torch.where(d < 0, gammas(roundings, fmt), roundings * fmt.unit_roundoff)


def kl_bound(policy: Tensor, ref: Tensor, estimator: str, fmt: Format = FP32) -> Tensor:
    """Bound of |computed - exact| for one KL estimate.

    d carries u |d|. k1: that is all. k2 = d^2 / 2: twice u for the square of d, one for the
    product, one for the half: 4u relative. k3: expm1 has 8u |expm1(-d)|, 2u near 0; d's own
    rounding, 0 where d fits into the format, moves the result by its slope, |expm1(-d)| u |d| for
    d >= 0, where the slope is at most 1, and a gamma instead of u |d| for d < 0, where it grows. A
    kernel takes exp(-d) as exp2(-d log2 e), whose rounded argument adds the same again. The last
    sum rounds once, u k3.

    Args:
        policy, ref: [...] exact log-probs.
        estimator: k1, k2 or k3.

    Returns:
        [...] float64; inf where the exact result overflows ``fmt``.

    Raises:
        ValueError: for an unknown estimator.
    """
    d, u = _log_ratio(policy, ref), fmt.unit_roundoff
    if estimator == "k1":
        return infinite_beyond(d, u * d.abs(), fmt)
    if estimator == "k2":
        exact = d * d / 2
        return infinite_beyond(exact, 4 * u * exact + fmt.smallest_subnormal, fmt)
    if estimator == "k3":
        exact, slope = _k3(d), torch.expm1(-d).abs()
        relative = _expm1_error(d, fmt)
        bound = slope * relative + u * exact
        bound = torch.where(slope == 0, torch.zeros_like(bound), bound)
        return infinite_beyond(exact, bound + fmt.smallest_subnormal, fmt)
    raise ValueError(f"unknown KL estimator {estimator!r}; use 'k1', 'k2' or 'k3'")


def kl_gradient_bound(
    policy: Tensor, ref: Tensor, estimator: str, upstream: Tensor, fmt: Format = FP32
) -> Tensor:
    """Bound for upstream times 1 (k1), d (k2) or 1 - exp(-d) (k3).

    k1: a copy, exact. k2: two roundings and the rounding of d, 4u. k3: differentiating
    expm1(-d) + d step by step subtracts exp(-d) = expm1(-d) + 1 from 1, so the error is absolute
    near 0, unlike that of the value: 8u |expm1(-d)| or 8u exp(-d) of the function, |d| u of d and
    as much of its argument scaled for exp2, 3u for forming, scaling and subtracting it, u of the
    result.

    Args:
        policy, ref, upstream: [...]. estimator: k1, k2 or k3.

    Returns:
        [...] float64; inf where the exact result overflows ``fmt``, 0 for a zero upstream.

    Raises:
        ValueError: for an unknown estimator.
    """
    d, up, u = _log_ratio(policy, ref), upstream.double(), fmt.unit_roundoff
    if estimator == "k1":
        exact, bound = up, torch.zeros_like(up)
    elif estimator == "k2":
        exact = up * d
        bound = 4 * u * exact.abs() + fmt.smallest_subnormal
    elif estimator == "k3":
        slope, power = torch.expm1(-d), torch.exp(-d)
        exact = -up * slope
        relative = gammas(FUNCTION_ERROR + 3 + 2 * d.abs(), fmt)
        of_power = torch.where(power == 0, torch.zeros_like(power), power * relative)
        of_slope = (FUNCTION_ERROR * slope.abs() + 1) * u + fmt.smallest_normal
        bound = up.abs() * (of_power + of_slope) + fmt.smallest_subnormal
    else:
        raise ValueError(f"unknown KL estimator {estimator!r}; use 'k1', 'k2' or 'k3'")
    return torch.where(up == 0, torch.zeros_like(bound), infinite_beyond(exact, bound, fmt))
