"""Bounds of the masked mean, of whitening and of group advantages.

The hazard. (x - mean) / std divides the error of the mean by the std: at a mean of 1000 std the
two-pass form keeps 3 digits in FP32, and E[x^2] - E[x]^2 keeps none. The bounds are those of the
two-pass form, with the conditioning mean|x| / std in them.

``mask[b, t]`` is True for a real token; masked slots have bound 0 and never enter.
"""

import torch
from torch import Tensor

from precision_lib.bounds.model import FP32, gamma, mean_bound, sum_depth
from precision_lib.formats import Format

#: Error of the mean over std from which on the first-order argument ends.
_WORST_CONDITION = 0.1


def masked_mean_bound(x: Tensor, mask: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for the mean over real tokens: see :func:`mean_bound`; inf where it overflows.

    Args:
        x, mask: one shape.

    Returns:
        Scalar, float64; 0 for an empty mask.
    """
    real = x[mask].double()
    bound = mean_bound(float(real.abs().sum()), real.numel(), fmt, mask.numel())
    overflows = real.numel() > 0 and float(real.mean().abs()) + bound > fmt.largest
    return torch.tensor(torch.inf if overflows else bound, dtype=torch.float64)


def masked_mean_gradient_bound(x: Tensor, mask: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for 1/n at the n real tokens: a rounded 1/n and one product, 2u/n.

    Args:
        x, mask: one shape.

    Returns:
        That shape, float64; 0 at masked slots.
    """
    bound = torch.zeros(x.shape, dtype=torch.float64)
    bound[mask] = 2 * fmt.unit_roundoff / max(int(mask.sum()), 1)
    return bound


def _standardised_bound(x: Tensor, slots: int, fmt: Format) -> Tensor:
    """Bound for (x - mean) / std of n exact values [n], taken from ``slots`` terms.

    A core may subtract the first value x_0 before, so that a constant gives 0: s = x - x_0 rounds
    u |s_i|. e = gamma_(depth+3) max(mean|x|, mean|s|) bounds the error of the mean (sum, division,
    storage). Centred values are (c_i + e')(1 + d_i), |e'| <= e, |d_i| <= u. With t = e / std, the
    sum of their squares is that of c_i^2 up to a relative gamma_(depth+3) (two roundings of c_i,
    the square and the sum), a cross term 2 e' sum c_i (1 + d_i), at most 4 t u as sum c_i = 0, and
    n e'^2 <= 2 t^2 (n-1) std^2. Halving for the square root, with 2u for it and the division, 6u
    for a reciprocal root or a library's sqrt, and q = u sqrt(sum s_i^2 / (n - 1)) / std of the
    roundings of s: the std has a relative error r <= t^2 + (gamma_(depth+5) + 4 t u) / 2 + 8u + q.
    The quotient is then wrong by (t + u |s_i| / std + |y| (r + 3u)) / (1 - r).

    inf where t >= 0.1: FP32 promises nothing there. 0 for a constant, which must come out as 0.
    """
    n, u = x.numel(), fmt.unit_roundoff
    if n < 2 or bool((x == x[0]).all()):
        return torch.zeros_like(x)
    shifted = x - x[0]
    centred = shifted - shifted.mean()
    std = (centred.square().sum() / (n - 1)).sqrt()
    depth = sum_depth(n, slots)
    t = gamma(depth + 3, fmt) * torch.maximum(x.abs().mean(), shifted.abs().mean()) / std
    if not t < _WORST_CONDITION:
        return torch.full_like(x, torch.inf)
    of_shift = u * (shifted.square().sum() / (n - 1)).sqrt() / std
    r = t * t + (gamma(depth + 5, fmt) + 4 * t * u) / 2 + 8 * u + of_shift
    each = t + u * shifted.abs() / std
    return (each + (centred / std).abs() * (r + 3 * u)) / (1 - r) + fmt.smallest_subnormal


def whiten_bound(x: Tensor, mask: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for (x - mean) / std over real tokens by two passes, sample std.

    The argument stands in the source. Overflow and underflow of x^2 are no excuse: the exact
    result is of size sqrt(n) at most.

    Args:
        x, mask: [B, T].

    Returns:
        [B, T] float64; 0 for constant input, inf where the mean's error reaches std / 10.
    """
    bound = torch.zeros(x.shape, dtype=torch.float64)
    bound[mask] = _standardised_bound(x[mask].double(), mask.numel(), fmt)
    return bound


def group_advantages_bound(rewards: Tensor, fmt: Format = FP32) -> Tensor:
    """:func:`whiten_bound` of every group. rewards [G, K], result [G, K] float64."""
    rows = [_standardised_bound(row, row.numel(), fmt) for row in rewards.double()]
    return torch.stack(rows) if rows else torch.zeros(rewards.shape, dtype=torch.float64)
