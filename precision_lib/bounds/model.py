"""The standard model: chained roundings, summation, rounding once.

fl(a op b) = (a op b)(1 + e), |e| <= u, and gamma_n = n u / (1 - n u) bounds n such factors
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 3.1 and 4.2).

The hazard. gamma_n of a sum of 150,000 terms is 0.9 % in FP32, which hides every mistake. A sum in
blocks, pairwise above them, rounds each term some 140 times; the bounds here ask for that.
"""

import math

import torch
from torch import Tensor

from precision_lib.formats import FORMATS, Format, ulp

FP32 = FORMATS["fp32"]

#: exp, log and expm1 of a vectorised mathematical library: at most 4 ulp = 8 u (SLEEF's u35 is
#: 3.5 ulp).
FUNCTION_ERROR = 8

#: expm1 near 0, up to |x| = 2^-10: at most 1 ulp = 2 u. Measured from 2^-30 on a CPU: torch 0.75
#: ulp, numpy 0.74; CUDA's programming guide states 1 ulp for expm1f.
EXPM1_ERROR_NEAR_0 = 2
EXPM1_NEAR_0 = 2.0**-10

#: Terms that a blocked sum may add in any order before it goes on pairwise. numpy's pairwise sum
#: has blocks of 128, torch's cascade sum shorter ones.
BLOCK = 128


def gamma(n: float, fmt: Format) -> float:
    """gamma_n = n u / (1 - n u), the relative error of n chained roundings.

    Raises:
        ValueError: when n u >= 1, where nothing can be said.
    """
    nu = n * fmt.unit_roundoff
    if nu >= 1:
        raise ValueError(f"{n} roundings in {fmt.name} have no error bound: n * u = {nu:.3g} >= 1")
    return nu / (1 - nu)


def gammas(n: Tensor, fmt: Format) -> Tensor:
    """:func:`gamma` of every element, float64; inf where nothing can be said."""
    nu = n.double() * fmt.unit_roundoff
    return torch.where(nu < 1, nu / (1 - nu), torch.full_like(nu, torch.inf))


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the real tokens in their places, 0 elsewhere; float64, of the mask's shape."""
    result = torch.zeros(mask.shape, dtype=torch.float64)
    result[mask] = values
    return result


def sum_depth(count: int, slots: int | None = None) -> int:
    """Roundings that a term passes in a blocked sum: min(n, 128) - 1 + ceil(log2(blocks)).

    Args:
        count: n, the number of terms that are not 0.
        slots: the number of terms including zeros (masked slots); ``count`` when not given. A zero
            is added without rounding, but it takes up room in a block.

    Returns:
        The depth for blocks of at most 128 terms added in any order, block sums pairwise. Never
        more than n - 1, which is what any order at all needs.
    """
    if count < 1:
        return 0
    blocks = math.ceil(max(count, slots or count) / BLOCK)
    return min(count - 1, BLOCK - 1 + math.ceil(math.log2(blocks)))


def rounding_bound(exact: Tensor, fmt: Format) -> Tensor:
    """Half an ulp of ``fmt`` at each value: the error of rounding it once, float64."""
    return 0.5 * ulp(exact, fmt)


def mean_bound(
    sum_of_magnitudes: float, count: int, fmt: Format = FP32, slots: int | None = None
) -> float:
    """Bound of |computed - exact| for a mean of ``count`` values by a blocked sum.

    gamma_depth * sum |x| for the sum, two more roundings for a division or for a product with a
    rounded 1/n, and one for a quotient below the normal range.

    Args:
        sum_of_magnitudes: sum |x| of the exact values.
        count: n. slots: see :func:`sum_depth`.
    """
    if count < 1:
        return 0.0
    return (
        gamma(sum_depth(count, slots) + 2, fmt) * sum_of_magnitudes / count + fmt.smallest_subnormal
    )


def infinite_beyond(exact: Tensor, bound: Tensor, fmt: Format) -> Tensor:
    """``bound``, or inf where the exact result does not fit into ``fmt`` within it."""
    return torch.where(exact.abs() + bound <= fmt.largest, bound, torch.full_like(bound, torch.inf))
