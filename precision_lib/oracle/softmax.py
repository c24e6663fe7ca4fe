"""Log-probabilities and entropy of a categorical distribution, with their gradients.

The hazard. A confident distribution hides its interesting part below the last bit: p = 1 - 1e-20
is 1, its log-prob -1e-20 is 0, its entropy is lost. So the largest logit is kept apart: with
d_v = z_v - max z, the normaliser is s = 1 + rest, where rest sums over all other entries, and
log s = log1p(rest), 1 - p_max = rest / s come out with a small *relative* error.

V vocabulary entries. A -inf logit is a zero probability.
"""

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache

import mpmath
import numpy as np
from numpy.typing import NDArray

from precision_lib.oracle.kl import DIGITS


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


class _Row:
    """One position: depths d = z - max z, weights e^d, their sum without the largest entry."""

    def __init__(self, logits: NDArray[np.float64]) -> None:
        self.top = int(np.argmax(logits))
        self.depth = logits - logits[self.top]
        self.weight = np.exp(self.depth)
        others = self.weight.copy()
        others[self.top] = 0.0
        self.rest = math.fsum(others.tolist())
        self.total = 1.0 + self.rest

    def logprob(self, token: int) -> float:
        """d_token - log s."""
        return float(self.depth[token]) - math.log1p(self.rest)

    def one_minus_probability(self, token: int) -> float:
        """1 - p_token, without cancellation for the largest entry."""
        if token == self.top:
            return self.rest / self.total
        return 1.0 - float(self.weight[token]) / self.total

    @cached_property
    def mean_depth(self) -> float:
        """E[-d] under the distribution; a zero probability contributes nothing."""
        finite = self.weight > 0
        return math.fsum((-self.depth[finite] * self.weight[finite]).tolist()) / self.total


def _rows(logits: NDArray[np.floating]) -> list[_Row]:
    """The rows; computed once for a value and the gradient that is asked for next."""
    return _remembered(logits.astype(np.float64).tobytes(), logits.shape[-1])


@lru_cache(maxsize=1)
def _remembered(logits: bytes, width: int) -> list[_Row]:
    return [_Row(row) for row in np.frombuffer(logits).reshape(-1, width)]


def token_logprobs(
    logits: NDArray[np.floating], tokens: NDArray[np.integer]
) -> NDArray[np.float64]:
    """log softmax(logits)[tokens] in float64: an error of a few 2**-53 relative to max(1, |l|).

    Args:
        logits: [..., V], finite or -inf, taken as exact.
        tokens: [...], each in [0, V).

    Returns:
        [...] nats. For a float64 kernel under test this is no sharper than the kernel;
        :func:`token_logprob` is.
    """
    with np.errstate(all="ignore"):
        chosen = zip(_rows(logits), tokens.ravel(), strict=True)
        return np.array([row.logprob(int(t)) for row, t in chosen]).reshape(tokens.shape)


def token_logprobs_gradient(
    logits: NDArray[np.floating], tokens: NDArray[np.integer], upstream: NDArray[np.floating]
) -> NDArray[np.float64]:
    """d (sum upstream * token_logprobs) / d logits = upstream * (onehot - softmax).

    Args:
        logits: [..., V]. tokens, upstream: [...].

    Returns:
        [..., V].
    """
    gradients = []
    with np.errstate(all="ignore"):
        for row, token, up in zip(_rows(logits), tokens.ravel(), upstream.ravel(), strict=True):
            gradient = -row.weight / row.total
            gradient[int(token)] = row.one_minus_probability(int(token))
            gradients.append(float(up) * gradient)
    return np.array(gradients).reshape(logits.shape)


def all_logprobs(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log softmax of one row [V]; -inf at a zero probability."""
    with np.errstate(all="ignore"):
        row = _Row(logits)
        logprobs: NDArray[np.float64] = row.depth - math.log1p(row.rest)
    return logprobs


def entropy(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """-sum_v p_v log p_v = log s + E[-d], in nats. logits [..., V], result [...]."""
    with np.errstate(all="ignore"):
        values = [math.log1p(row.rest) + row.mean_depth for row in _rows(logits)]
    return np.array(values).reshape(logits.shape[:-1])


def entropy_gradient(
    logits: NDArray[np.floating], upstream: NDArray[np.floating]
) -> NDArray[np.float64]:
    """d (sum upstream * entropy) / d logits = -upstream p_v (log p_v + H).

    log s cancels in log p_v + H = d_v + E[-d], so it never enters.

    Args:
        logits: [..., V]. upstream: [...].

    Returns:
        [..., V]; 0 at a zero probability.
    """
    gradients = []
    with np.errstate(all="ignore"):
        for row, up in zip(_rows(logits), upstream.ravel(), strict=True):
            finite_depth = np.where(row.weight > 0, row.depth, 0.0)
            gradient = -row.weight / row.total * (finite_depth + row.mean_depth)
            gradients.append(float(up) * gradient)
    return np.array(gradients).reshape(logits.shape)
