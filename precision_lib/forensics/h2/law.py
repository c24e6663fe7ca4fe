"""What storing rewards in a format does to normalised advantages, derived before it is measured.

The hazard. An error figure that nobody predicted may be the defect of whoever measured it. Storing
is simple enough to be worked out, so that a measurement has something to be held against, and so
that a reader can tell from two numbers, offset and spread, what a format will cost.

**The law.** K rewards r of a group have the mean m, the sample standard deviation s and the
advantages a = (r - m) / s, with sum(a) = 0 and sum(a^2) = K - 1. Storing adds e_i. When rewards are
spread over many steps of the format, e_i is uniform on half a step h_i = ulp(r_i) to either side
and independent of the rest: mean 0, variance h_i^2 / 12. To first order in e the advantages move by

    da = (e - mean(e) - a (a . e) / (K - 1)) / s = P e / s.

P projects away two directions: a common shift, which the mean takes off, and a common stretch,
which the deviation takes off. With P_ii = 1 - 1/K - a_i^2 / (K - 1) it follows that

    E sum(da^2) = sum_i P_ii h_i^2 / (12 s^2),      and for one step h:  (K - 2) h^2 / (12 s^2).

For normal rewards of deviation sigma, E[1 / s^2] = (K - 1) / ((K - 3) sigma^2), so that

    RMS(da) / RMS(a) = h / (sqrt(12) sigma) * sqrt((K - 2) / (K - 3)),

because RMS(a) = sqrt((K - 1) / K).

Batch normalisation is the same with one group of all N rewards.

**Its second order.** Advantages lie on a sphere of radius sqrt(K - 1), so that an error is a chord.
With t and p the parts of e - mean(e) across and along a, each over |r - m|, the chord has
sum(da^2) = (K - 1) (t^2 (1 - 2p + 3p^2) - 3/4 t^4 + ...), and the expectation falls short of the
first order by the share v (3K/4 - 3) / ((K - 1) s^2), v = h^2 / 12: 0.9 % of the power at
h = s / 2 and 3.6 % at h = s, K = 8.

**Beyond it** (h > sigma) samples fall into a few cells. Where all are in one, the group ties, its
advantages are 0 and the error is the advantages themselves: a ratio of 1. On the way there it is
larger: one sample alone in its cell gets (K - 1) / sqrt(K), whatever it deserved.

**Immune**: rewards of two values, at any offset and any scale. Their advantages depend on the
counts alone, so nothing changes as long as the two do not become one.

G groups of K samples, N = G K.
"""

import math

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.statistics import Metric, Resampling, small_sample_factor
from precision_lib.formats import Format, round_to, ulp
from precision_lib.metrics.measure import Array
from precision_lib.ppo import advantages


def predicted_error2(rewards: Tensor, fmt: Format) -> Tensor:
    """Expected sum of squared advantage errors of each group, first order, from the actual ulps.

    Args:
        rewards: [G, K], wider than ``fmt``.
        fmt: in which they are to be stored.

    Returns:
        [G] float64; 0 for a group of equal rewards, which stay equal.
    """
    wide = rewards.double()
    k = wide.shape[1]
    centred = wide - wide.mean(-1, keepdim=True)
    squares = centred.square().sum(-1, keepdim=True)
    share = centred.square() / torch.where(squares == 0, 1, squares)  # a_i^2 / (K - 1)
    variance = ulp(wide, fmt).square() / 12
    total = ((1 - 1 / k - share) * variance).sum(-1)
    spread = squares.squeeze(-1) / max(k - 1, 1)
    return torch.where(spread == 0, 0, total / torch.where(spread == 0, 1, spread))


def second_order(rewards: Tensor, fmt: Format) -> Tensor:
    """What the second order takes off :func:`predicted_error2`, [G] float64, 0 or more for K >= 4.

    Meant while the steps are smaller than the spread; beyond, the series does not converge.
    """
    k, spread = rewards.shape[1], rewards.double().var(-1)
    variance = ulp(rewards, fmt).square().mean(-1) / 12
    ratio = torch.where(spread == 0, 0, variance / torch.where(spread == 0, 1, spread))
    return predicted_error2(rewards, fmt) * ratio * (0.75 * k - 3) / max(k - 1, 1)


def small_sample_growth(k: int) -> float:
    """sqrt((K - 2) / (K - 3)), of normal rewards; 1.10 for K = 8, infinite below 4.

    Raises:
        ValueError: for K < 4, where E[1 / s^2] does not exist.
    """
    if k < 4:
        raise ValueError(f"K = {k}: the law needs groups of at least 4 samples")
    return math.sqrt((k - 2) / (k - 3))


def predicted_rms(step_over_sigma: float, k: int) -> float:
    """RMS error over RMS of the advantages of normal rewards of one step, first order."""
    return step_over_sigma / math.sqrt(12) * small_sample_growth(k)


def predicted_critical_offset(limit: float, sigma: float, fmt: Format, k: int) -> float:
    """Offset over spread from which on the error of normal rewards is above ``limit``.

    The step is a power of two, so the error jumps where the offset passes one: at the first binade
    whose step exceeds ``limit`` / ``predicted_rms(1)`` times sigma.
    """
    exponent = math.ceil(math.log2(limit / predicted_rms(1.0, k) * sigma))
    return math.ldexp(1.0, exponent + fmt.significand_bits - 1) / sigma


def stored_error2(rewards: Tensor, fmt: Format) -> Tensor:
    """Sum of squared advantage errors of each group, measured, [G] float64; statistics float64."""
    wide = rewards.double()
    stored = advantages.group_advantages(round_to(wide, fmt))
    return (stored - advantages.group_advantages(wide)).square().sum(-1)


def measured_critical_offset(
    normal: Tensor, limit: float, sigma: float, fmt: Format, resampling: Resampling
) -> Metric:
    """Offset over spread at which the measured error first passes ``limit``, with its interval.

    Args:
        normal: [G, K] float64 standard normal draws, the same for every offset.
        resampling: of the G groups.

    Returns:
        From 1/8 to 4 times the predicted offset; at the upper end where it never passes.
    """
    groups, k = normal.shape
    centre = predicted_critical_offset(limit, sigma, fmt, k)
    coarse = centre * np.exp2(np.arange(-12, 9) / 4)
    near = centre + np.linspace(-4, 4, 33)  # the jump is as wide as the rewards scatter
    offsets = np.unique(np.concatenate([coarse, near[near > 0]]))
    errors = np.stack(
        [stored_error2(sigma * (normal + float(c)), fmt).numpy() for c in offsets], axis=1
    )
    value = _crossing(offsets, errors.sum(0, keepdims=True) / (groups * (k - 1)), limit)[0]
    total = resampling.weights @ errors / (groups * (k - 1))
    quantiles = np.quantile(_crossing(offsets, total, limit), [0.025, 0.975])
    low, high = value + (quantiles - value) * small_sample_factor(resampling.clusters)
    return Metric(
        float(value), float(low), float(high), groups * k, "offset / spread", resampling.clusters
    )


def _crossing(offsets: Array, power: Array, limit: float) -> Array:
    """[R] interpolated offset at which each curve of mean squares [R, n] first passes ``limit``."""
    rms = np.sqrt(power)
    above = rms > limit
    index = np.where(above.any(1), above.argmax(1), len(offsets) - 1).clip(min=1)
    row = np.arange(len(rms))
    low, high = rms[row, index - 1], rms[row, index]
    part = np.clip((limit - low) / np.where(high > low, high - low, 1), 0, 1)
    crossing: Array = offsets[index - 1] + part * (offsets[index] - offsets[index - 1])
    return crossing
