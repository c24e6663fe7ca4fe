"""The generalised Jensen-Shannon divergence between two categorical distributions.

The hazard. Where student and teacher nearly agree the divergence is a small difference of large
terms, in float64 too. Every entry is taken as p f(log(p / m)) with terms that are never negative.
"""

import math

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import Divergence, taking
from precision_lib.oracle.softmax import all_logprobs

Array = NDArray[np.floating]


def _shares(log_q: float, log_p: float, beta: float) -> tuple[float, float]:
    """(log(q / m), log(p / m)), m = beta p + (1 - beta) q; 0 for a probability of 0 in both."""
    if log_p == log_q:
        return 0.0, 0.0
    d = log_p - log_q
    if d > 0:
        share = -math.log1p((1 - beta) * math.expm1(-d))
        return share - d, share
    share = -math.log1p(beta * math.expm1(d))
    return share, share + d


def _terms(p: float, log_share: float) -> float:
    """p log(p / m) - p + m, never negative, with m = p exp(-log_share)."""
    if p == 0:
        return 0.0
    x = -log_share
    if abs(x) < 1e-3:  # e^x - 1 - x by its series
        return p * x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5)))
    return p * (math.expm1(x) - x)


def _row(student: NDArray[np.float64], teacher: NDArray[np.float64], beta: float) -> list[float]:
    terms = []
    for log_q, log_p in zip(all_logprobs(student), all_logprobs(teacher), strict=True):
        q, p = math.exp(log_q), math.exp(log_p)
        of_q, of_p = _shares(float(log_q), float(log_p), beta)
        # A zero probability leaves the mass m of its part: p log(p/m) - p + m is m there.
        mixture = beta * p + (1 - beta) * q
        terms.append(beta * (_terms(p, of_p) if p else mixture))
        terms.append((1 - beta) * (_terms(q, of_q) if q else mixture))
    return terms


@taking(Divergence)
def jsd(x: Divergence[Array]) -> NDArray[np.float64]:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), [B, T] nats.

    m = beta teacher + (1 - beta) student. Logits [B, T, V], finite or -inf. The sums of p, q and m
    are 1, so that the terms p log(p / m) - p + m of either KL add up to it.
    """
    rows = zip(_flat(x.student_logits), _flat(x.teacher_logits), strict=True)
    values = [math.fsum(_row(q, p, x.beta)) for q, p in rows]
    return np.array(values).reshape(x.student_logits.shape[:-1])


@taking(Divergence)
def jsd_gradient(x: Divergence[Array], upstream: Array) -> NDArray[np.float64]:
    """d (sum upstream * jsd) / d student_logits: upstream (1 - beta) q (log(q/m) - KL(q || m))."""
    gradients = []
    rows = zip(_flat(x.student_logits), _flat(x.teacher_logits), upstream.ravel(), strict=True)
    for student, teacher, up in rows:
        log_q, log_p = all_logprobs(student), all_logprobs(teacher)
        q = np.exp(log_q)
        of_q = [
            _shares(float(a), float(b), x.beta)[0] if a > -np.inf else 0.0
            for a, b in zip(log_q, log_p, strict=True)
        ]
        mean = math.fsum((q * of_q).tolist())
        gradients.append(float(up) * (1 - x.beta) * q * (np.array(of_q) - mean))
    return np.array(gradients).reshape(x.student_logits.shape)


def _flat(logits: Array) -> NDArray[np.float64]:
    return logits.astype(np.float64).reshape(-1, logits.shape[-1])
