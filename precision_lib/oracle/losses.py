"""PPO's clipped policy and value losses with their gradients, token by token.

The hazard. A ratio that overflows meets an advantage of 0, and 0 * inf is NaN; or it is clipped
and its gradient, 0, is multiplied by inf. Every token is therefore decided by cases, and only the
branch that counts is evaluated.

``mask[b, t]`` is True for a real token; masked slots may hold anything and never enter.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import PolicyLoss, ValueLoss, taking
from precision_lib.oracle.ratios import exp

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def _real_tokens(mask: Mask, *arrays: Array) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """(index, values there) of every real token."""
    for index in zip(*np.nonzero(mask), strict=True):
        yield index, [float(a[index]) for a in arrays]


def _mean(terms: list[float]) -> float:
    """Mean by an exactly rounded sum, 0 for none, inf beyond float64 (no term is -inf)."""
    try:
        return math.fsum(terms) / len(terms) if terms else 0.0
    except OverflowError:
        return math.inf


@taking(PolicyLoss)
def policy_loss(x: PolicyLoss[Array, Mask]) -> float:
    """Mean over real tokens of -min(r A, clip(r, 1-c, 1+c) A), r = exp(logprobs - old_logprobs).

    All arrays [B, T]. 0 for an empty mask; inf where a token's loss exceeds float64
    (Schulman et al., 2017, equation 7).
    """
    terms = []
    for _, (new, old, advantage) in _real_tokens(x.mask, x.logprobs, x.old_logprobs, x.advantages):
        if advantage == 0:
            terms.append(0.0)
            continue
        ratio = exp(new - old)
        limited = min(ratio, 1 + x.clip_range) if advantage > 0 else max(ratio, 1 - x.clip_range)
        terms.append(-limited * advantage)
    return _mean(terms)


@taking(PolicyLoss)
def policy_loss_gradient(x: PolicyLoss[Array, Mask]) -> NDArray[np.float64]:
    """d policy_loss / d logprobs [B, T]: -A r / n where the unclipped branch counts, else 0.

    It counts for A > 0 when r <= 1 + c, for A < 0 when r >= 1 - c.
    """
    gradient, n = np.zeros(x.mask.shape), int(x.mask.sum())
    tokens = _real_tokens(x.mask, x.logprobs, x.old_logprobs, x.advantages)
    for index, (new, old, advantage) in tokens:
        ratio = exp(new - old)
        if (advantage > 0 and ratio <= 1 + x.clip_range) or (
            advantage < 0 and ratio >= 1 - x.clip_range
        ):
            gradient[index] = -advantage * ratio / n
    return gradient


@taking(ValueLoss)
def value_loss(x: ValueLoss[Array, Mask]) -> float:
    """Mean over real tokens of 0.5 max((v - R)^2, (clip(v, old - c, old + c) - R)^2).

    All arrays [B, T]. 0 for an empty mask.
    """
    terms = []
    for _, (value, old, target) in _real_tokens(x.mask, x.values, x.old_values, x.returns):
        clipped = min(max(value, old - x.clip_range), old + x.clip_range)
        error = max(abs(value - target), abs(clipped - target))
        terms.append(0.5 * error * error)
    return _mean(terms)


@taking(ValueLoss)
def value_loss_gradient(x: ValueLoss[Array, Mask]) -> NDArray[np.float64]:
    """d value_loss / d values [B, T]: (v - R) / n where v counts, else 0.

    v counts inside the clip range, and outside where its error is the larger one.
    """
    gradient, n = np.zeros(x.mask.shape), int(x.mask.sum())
    for index, (value, old, target) in _real_tokens(x.mask, x.values, x.old_values, x.returns):
        clipped = min(max(value, old - x.clip_range), old + x.clip_range)
        if clipped == value or abs(value - target) > abs(clipped - target):
            gradient[index] = (value - target) / n
    return gradient
