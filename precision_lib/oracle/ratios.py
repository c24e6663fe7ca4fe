"""Ratios of responses and the weights of another rollout policy, sequence by sequence.

The hazard. exp(sum) and exp(mean) agree on one token. Log-ratios are summed exactly, so that
+60 and -60 leave what stands between them.

``mask[b, t]`` is True for a real token, anywhere; masked slots may hold anything and never enter.
"""

import math

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import Weights, taking

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def exp(x: float) -> float:
    """e^x with inf beyond float64."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def summed_log_ratios(new: Array, old: Array, mask: Mask) -> list[tuple[float, int]]:
    """(sum of new - old over real tokens, their number) of every sequence."""
    return [
        (math.fsum(x for t in np.nonzero(row)[0] for x in (float(a[t]), -float(b[t]))), row.sum())
        for a, b, row in zip(new, old, mask, strict=True)
    ]


def sequence_ratio(logprobs: Array, old_logprobs: Array, mask: Mask) -> NDArray[np.float64]:
    """exp of the mean log-ratio of every sequence, [B]; 1 without a real token."""
    sums = summed_log_ratios(logprobs, old_logprobs, mask)
    return np.array([exp(total / max(n, 1)) for total, n in sums])


def sequence_ratio_gradient(
    logprobs: Array, old_logprobs: Array, mask: Mask, upstream: Array
) -> NDArray[np.float64]:
    """d (sum upstream * sequence_ratio) / d logprobs [B, T]: upstream_b s_b / n_b at real tokens.

    upstream: [B]. A zero upstream gives 0, also against an infinite ratio.
    """
    ratio = sequence_ratio(logprobs, old_logprobs, mask)
    with np.errstate(all="ignore"):
        slope = np.where(upstream == 0, 0.0, upstream * ratio / np.maximum(mask.sum(axis=1), 1))
    return np.where(mask, slope[:, None], 0.0)


@taking(Weights)
def importance_weights(x: Weights[Array, Mask]) -> NDArray[np.float64]:
    """[B, T] weights, 0 in masked slots: exp of the token's log-ratio, or of its sequence's sum
    (``sequence``) or mean (``geometric``); ``truncate``: at most cap, ``mask``: 0 above cap.
    """
    weights = np.zeros(x.mask.shape)
    sums = summed_log_ratios(x.train_logprobs, x.rollout_logprobs, x.mask)
    for b, t in zip(*np.nonzero(x.mask), strict=True):
        total, n = sums[b]
        own = float(x.train_logprobs[b, t]) - float(x.rollout_logprobs[b, t])
        weight = exp({"token": own, "sequence": total, "geometric": total / n}[x.level])
        weights[b, t] = weight if weight <= x.cap else x.cap if x.mode == "truncate" else 0.0
    return weights
