"""DAPO, GSPO and CISPO with their gradients, token by token and case by case.

The hazard. A ratio that overflows meets a clip or an advantage of 0; only the branch that counts
is evaluated.

``mask[b, t]`` is True for a real token, anywhere; masked slots may hold anything and never enter.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import Clipped, Dapo, taking
from precision_lib.oracle.ratios import exp, sequence_ratio

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Gradient = NDArray[np.float64]


def _sum_over(terms: Iterable[float], count: float) -> float:
    """Exact sum over ``count`` (at least 1 where nothing was summed); inf beyond float64."""
    try:
        return math.fsum(terms) / (count or 1)
    except OverflowError:
        return math.inf


def _chosen(ratio: float, advantage: float, x: Clipped[Array, Mask]) -> tuple[float, bool]:
    """(q, whether q is the ratio itself) of the surrogate -q A, A other than 0."""
    low, high = 1 - x.clip_low, 1 + x.clip_high
    if advantage > 0:
        return min(ratio, high), ratio <= high
    dual = x.dual_clip if isinstance(x, Dapo) else None
    largest = math.inf if dual is None else dual
    return min(max(ratio, low), largest), low <= ratio <= largest


def _tokens(x: Clipped[Array, Mask]) -> Iterator[tuple[tuple[int, ...], float, float]]:
    """(index, A, r) of every real token."""
    for index in zip(*np.nonzero(x.mask), strict=True):
        ratio = exp(float(x.logprobs[index]) - float(x.old_logprobs[index]))
        yield index, float(x.advantages[index]), ratio


@taking(Dapo)
def dapo_loss(x: Dapo[Array, Mask]) -> float:
    """Mean over real tokens of -q A; arrays [B, T]. 0 for an empty mask."""
    terms = [-a * _chosen(ratio, a, x)[0] if a else 0.0 for _, a, ratio in _tokens(x)]
    return _sum_over(terms, len(terms))


@taking(Dapo)
def dapo_loss_gradient(x: Dapo[Array, Mask]) -> Gradient:
    """d dapo_loss / d logprobs [B, T]: -A r / n where q is the ratio, else 0."""
    gradient, n = np.zeros(x.mask.shape), int(x.mask.sum())
    for index, a, ratio in _tokens(x):
        if a and _chosen(ratio, a, x)[1]:
            gradient[index] = -a * ratio / n
    return gradient


@taking(Clipped)
def gspo_loss(x: Clipped[Array, Mask]) -> float:
    """Mean of -q_b A_b over the sequences with a real token; advantages [B], the others [B, T]."""
    ratios = sequence_ratio(x.logprobs, x.old_logprobs, x.mask)
    terms = [
        -float(a) * _chosen(float(r), float(a), x)[0] if a else 0.0
        for r, a, row in zip(ratios, x.advantages, x.mask, strict=True)
        if row.any()
    ]
    return _sum_over(terms, len(terms))


@taking(Clipped)
def gspo_loss_gradient(x: Clipped[Array, Mask]) -> Gradient:
    """d gspo_loss / d logprobs [B, T]: -A s / (N n_b) at real tokens where q is the ratio."""
    ratios = sequence_ratio(x.logprobs, x.old_logprobs, x.mask)
    gradient, count = np.zeros(x.mask.shape), int(x.mask.any(axis=1).sum())
    for b, row in enumerate(x.mask):
        a, r = float(x.advantages[b]), float(ratios[b])
        if row.any() and a and _chosen(r, a, x)[1]:
            gradient[b, row] = -a * r / (count * int(row.sum()))
    return gradient


def _cispo_weights(x: Clipped[Array, Mask]) -> Gradient:
    """w A of every real token, w = clip(r, 1 - low, 1 + high)."""
    weights = np.zeros(x.mask.shape)
    for index, a, ratio in _tokens(x):
        weights[index] = min(max(ratio, 1 - x.clip_low), 1 + x.clip_high) * a
    return weights


@taking(Clipped)
def cispo_loss(x: Clipped[Array, Mask]) -> float:
    """Mean over real tokens of -w A logprobs; arrays [B, T]. 0 for an empty mask."""
    terms = (-_cispo_weights(x)[x.mask] * x.logprobs[x.mask].astype(np.float64)).tolist()
    return _sum_over(terms, len(terms))


@taking(Clipped)
def cispo_loss_gradient(x: Clipped[Array, Mask]) -> Gradient:
    """d cispo_loss / d logprobs [B, T]: -w A / n at every real token; w is a constant."""
    return -_cispo_weights(x) / max(int(x.mask.sum()), 1)
