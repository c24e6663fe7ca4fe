"""DAPO, GSPO and CISPO with their gradients, token by token and case by case.

The hazard. A ratio that overflows meets a clip or an advantage of 0; only the branch that counts
is evaluated.

``mask[b, t]`` is True for a real token, anywhere; masked slots may hold anything and never enter.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

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


def _chosen(
    ratio: float, advantage: float, low: float, high: float, dual: float | None = None
) -> tuple[float, bool]:
    """(q, whether q is the ratio itself) of the surrogate -q A, A other than 0."""
    if advantage > 0:
        return min(ratio, 1 + high), ratio <= 1 + high
    largest = math.inf if dual is None else dual
    return min(max(ratio, 1 - low), largest), 1 - low <= ratio <= largest


def dapo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Mask,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> float:
    """Mean over real tokens of -q A; arrays [B, T]. 0 for an empty mask."""
    terms = []
    for index in zip(*np.nonzero(mask), strict=True):
        a, d = float(advantages[index]), float(logprobs[index]) - float(old_logprobs[index])
        terms.append(-a * _chosen(exp(d), a, clip_low, clip_high, dual_clip)[0] if a else 0.0)
    return _sum_over(terms, len(terms))


def dapo_loss_gradient(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Mask,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Gradient:
    """d dapo_loss / d logprobs [B, T]: -A r / n where q is the ratio, else 0."""
    gradient, n = np.zeros(mask.shape), int(mask.sum())
    for index in zip(*np.nonzero(mask), strict=True):
        a, d = float(advantages[index]), float(logprobs[index]) - float(old_logprobs[index])
        if a and _chosen(exp(d), a, clip_low, clip_high, dual_clip)[1]:
            gradient[index] = -a * exp(d) / n
    return gradient


def gspo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Mask,
    clip_low: float,
    clip_high: float,
) -> float:
    """Mean of -q_b A_b over the sequences with a real token; advantages [B], the others [B, T]."""
    ratios = sequence_ratio(logprobs, old_logprobs, mask)
    terms = [
        -float(a) * _chosen(float(r), float(a), clip_low, clip_high)[0] if a else 0.0
        for r, a, row in zip(ratios, advantages, mask, strict=True)
        if row.any()
    ]
    return _sum_over(terms, len(terms))


def gspo_loss_gradient(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Mask,
    clip_low: float,
    clip_high: float,
) -> Gradient:
    """d gspo_loss / d logprobs [B, T]: -A s / (N n_b) at real tokens where q is the ratio."""
    ratios, count = sequence_ratio(logprobs, old_logprobs, mask), int(mask.any(axis=1).sum())
    gradient = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        a, r = float(advantages[b]), float(ratios[b])
        if row.any() and a and _chosen(r, a, clip_low, clip_high)[1]:
            gradient[b, row] = -a * r / (count * int(row.sum()))
    return gradient


def _cispo_weights(
    logprobs: Array, old: Array, advantages: Array, mask: Mask, low: float, high: float
) -> Gradient:
    """w A of every real token, w = clip(r, 1 - low, 1 + high)."""
    weights = np.zeros(mask.shape)
    for index in zip(*np.nonzero(mask), strict=True):
        ratio = exp(float(logprobs[index]) - float(old[index]))
        weights[index] = min(max(ratio, 1 - low), 1 + high) * float(advantages[index])
    return weights


def cispo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Mask,
    clip_low: float,
    clip_high: float,
) -> float:
    """Mean over real tokens of -w A logprobs; arrays [B, T]. 0 for an empty mask."""
    weights = _cispo_weights(logprobs, old_logprobs, advantages, mask, clip_low, clip_high)
    terms = (-weights[mask] * logprobs[mask].astype(np.float64)).tolist()
    return _sum_over(terms, len(terms))


def cispo_loss_gradient(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Mask,
    clip_low: float,
    clip_high: float,
) -> Gradient:
    """d cispo_loss / d logprobs [B, T]: -w A / n at every real token; w is a constant."""
    weights = _cispo_weights(logprobs, old_logprobs, advantages, mask, clip_low, clip_high)
    return -weights / max(int(mask.sum()), 1)
