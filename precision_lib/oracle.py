"""The truth for the kernels, in float64 and mpmath; imports nothing from ``ppo``.

The hazard. An oracle that shares code, or a library routine, with the code under test shares its
errors. So this module is written differently on purpose: numpy and mpmath instead of torch, sums
by ``math.fsum``, loops instead of vectors. It is slow and meant for small inputs.
"""

import math
from collections.abc import Sequence

import mpmath
import numpy as np
from numpy.typing import NDArray

#: Working precision of the mpmath parts: 100 digits hold exp(-200) next to 1 with room to spare.
DIGITS = 100


def token_logprob(logits: Sequence[float], token: int) -> float:
    """log softmax(logits)[token] of one position, correctly rounded to float64.

    Args:
        logits: V finite floats or -inf, taken as exact.
        token: index into them.
    """
    with mpmath.workdps(DIGITS):
        largest = max(logits)
        total = mpmath.fsum(mpmath.exp(mpmath.mpf(z) - largest) for z in logits if z != -math.inf)
        if logits[token] == -math.inf:
            return -math.inf
        return float(mpmath.mpf(logits[token]) - largest - mpmath.log(total))


def token_logprobs(
    logits: NDArray[np.floating], tokens: NDArray[np.integer]
) -> NDArray[np.float64]:
    """:func:`token_logprob` of every position. logits [..., V], tokens [...]."""
    flat = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    values = [
        token_logprob(row.tolist(), int(t)) for row, t in zip(flat, tokens.ravel(), strict=True)
    ]
    return np.array(values).reshape(tokens.shape)


def k3(log_ratio: float) -> float:
    """exp(-d) - 1 + d, correctly rounded to float64; inf where it exceeds float64."""
    with mpmath.workdps(DIGITS):
        d = mpmath.mpf(log_ratio)
        return float(mpmath.exp(-d) - 1 + d)


def masked_mean(x: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Mean over the slots where mask is True, by an exactly rounded sum; 0 for none."""
    kept = x[mask].astype(np.float64).tolist()
    return math.fsum(kept) / len(kept) if kept else 0.0
