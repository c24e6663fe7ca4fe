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

Array = NDArray[np.floating]


def _real_tokens(
    mask: NDArray[np.bool_], *arrays: Array
) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """(index, values there) of every real token."""
    for index in zip(*np.nonzero(mask), strict=True):
        yield index, [float(a[index]) for a in arrays]


def _exp(x: float) -> float:
    """exp with inf beyond float64."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _mean(terms: list[float]) -> float:
    """Mean by an exactly rounded sum, 0 for none, inf beyond float64 (no term is -inf)."""
    try:
        return math.fsum(terms) / len(terms) if terms else 0.0
    except OverflowError:
        return math.inf


def policy_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: NDArray[np.bool_],
    clip_range: float,
) -> float:
    """Mean over real tokens of -min(r A, clip(r, 1-c, 1+c) A), r = exp(logprobs - old_logprobs).

    All arrays [B, T]. 0 for an empty mask; inf where a token's loss exceeds float64
    (Schulman et al., 2017, equation 7).
    """
    terms = []
    for _, (new, old, advantage) in _real_tokens(mask, logprobs, old_logprobs, advantages):
        if advantage == 0:
            terms.append(0.0)
            continue
        ratio = _exp(new - old)
        limited = min(ratio, 1 + clip_range) if advantage > 0 else max(ratio, 1 - clip_range)
        terms.append(-limited * advantage)
    return _mean(terms)


def policy_loss_gradient(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: NDArray[np.bool_],
    clip_range: float,
) -> NDArray[np.float64]:
    """d policy_loss / d logprobs [B, T]: -A r / n where the unclipped branch counts, else 0.

    It counts for A > 0 when r <= 1 + c, for A < 0 when r >= 1 - c.
    """
    gradient, n = np.zeros(logprobs.shape), int(mask.sum())
    for index, (new, old, advantage) in _real_tokens(mask, logprobs, old_logprobs, advantages):
        ratio = _exp(new - old)
        if (advantage > 0 and ratio <= 1 + clip_range) or (
            advantage < 0 and ratio >= 1 - clip_range
        ):
            gradient[index] = -advantage * ratio / n
    return gradient


def value_loss(
    values: Array,
    old_values: Array,
    returns: Array,
    mask: NDArray[np.bool_],
    clip_range: float,
) -> float:
    """Mean over real tokens of 0.5 max((v - R)^2, (clip(v, old - c, old + c) - R)^2).

    All arrays [B, T]. 0 for an empty mask.
    """
    terms = []
    for _, (value, old, target) in _real_tokens(mask, values, old_values, returns):
        clipped = min(max(value, old - clip_range), old + clip_range)
        error = max(abs(value - target), abs(clipped - target))
        terms.append(0.5 * error * error)
    return _mean(terms)


def value_loss_gradient(
    values: Array,
    old_values: Array,
    returns: Array,
    mask: NDArray[np.bool_],
    clip_range: float,
) -> NDArray[np.float64]:
    """d value_loss / d values [B, T]: (v - R) / n where v counts, else 0.

    v counts inside the clip range, and outside where its error is the larger one.
    """
    gradient, n = np.zeros(values.shape), int(mask.sum())
    for index, (value, old, target) in _real_tokens(mask, values, old_values, returns):
        clipped = min(max(value, old - clip_range), old + clip_range)
        if clipped == value or abs(value - target) > abs(clipped - target):
            gradient[index] = (value - target) / n
    return gradient
