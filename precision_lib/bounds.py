"""Error bounds of FP32 (or lower) arithmetic, from format, length and conditioning.

The hazard. A typed tolerance is either too tight for a harder input or, more often, so loose that
a wrong result passes. Each bound here is the rounding-error argument written down, in the standard
model fl(a op b) = (a op b)(1 + e), |e| <= u, with gamma_n = n u / (1 - n u)
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
"""

import torch
from torch import Tensor

from precision_lib.formats import Format, ulp

#: exp and log of a vectorised mathematical library: at most 4 ulp = 8 u (SLEEF's u35 is 3.5 ulp).
_FUNCTION_ERROR = 8


def gamma(n: float, fmt: Format) -> float:
    """gamma_n = n u / (1 - n u), the relative error of n chained roundings.

    Raises:
        ValueError: when n u >= 1, where nothing can be said.
    """
    nu = n * fmt.unit_roundoff
    if nu >= 1:
        raise ValueError(f"{n} roundings in {fmt.name} have no error bound: n * u = {nu:.3g} >= 1")
    return nu / (1 - nu)


def log_softmax_bound(logits: Tensor, logprobs: Tensor, fmt: Format) -> Tensor:
    """Bound of |computed - exact| for a log-softmax evaluated with FP32-style max subtraction.

    With d_v = z_v - max z, s = sum exp(d_v), l = d_t - log s:
    each d_v carries u |d_v|, so exp(d_v) carries a relative |d_v| u + 8u; the sum of V terms adds
    gamma_V; hence log s has an absolute error of at most
    E[|d|] u + 8 u + gamma_V plus 8 u |log s| of the logarithm, E being the mean under softmax.
    The two subtractions of l = (z_t - max z) - log s add u |d_t| + u |l|.

    Args:
        logits: [..., V] exact inputs. logprobs: [...] exact results. fmt: the arithmetic's format.

    Returns:
        [...] float64 bound in nats.
    """
    z = logits.double()
    depth = (z - z.max(-1, keepdim=True).values).clamp(min=-1e4)  # exp(-1e4) is 0 in every format
    mean_depth = (torch.softmax(z, -1) * -depth).sum(-1)
    log_sum = torch.logsumexp(depth, -1)
    size = logprobs.double().abs()
    u, terms = fmt.unit_roundoff, logits.shape[-1]
    relative = (mean_depth + 2 * _FUNCTION_ERROR + log_sum * _FUNCTION_ERROR) * u
    return relative + gamma(terms, fmt) + u * (2 * size + log_sum)


def rounding_bound(exact: Tensor, fmt: Format) -> Tensor:
    """Half an ulp of ``fmt`` at each value: the error of rounding it once, float64."""
    return 0.5 * ulp(exact, fmt)


def mean_bound(sum_of_magnitudes: float, count: int, fmt: Format) -> float:
    """Bound of |computed - exact| for a mean of ``count`` values summed in any order.

    gamma_(n-1) * sum |x| for the sum, one more rounding for the division.
    """
    return gamma(count, fmt) * sum_of_magnitudes / max(count, 1)
