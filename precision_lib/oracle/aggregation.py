"""Means of token losses over tokens or sequences, with a denominator that may be given.

The hazard. A mean of means is another number than the mean, and of the same size.

``mask[b, t]`` is True for a real token, anywhere; masked slots may hold anything and never enter.
"""

import math

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import Aggregate, taking

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def _total(x: Aggregate[Array, Mask]) -> float:
    """D: the denominator; without one the number of tokens or sequences that are real."""
    lengths = x.mask.sum(axis=1)
    count = int(lengths.sum()) if x.mode == "token_mean" else int((lengths > 0).sum())
    return max(count, 1) if x.denominator is None else x.denominator


@taking(Aggregate)
def aggregate(x: Aggregate[Array, Mask]) -> float:
    """Sum over real tokens of values / D; for ``sequence_mean`` also over the sequence's length.

    D is the denominator; without one the number of real tokens (``token_mean``), or of sequences
    with a real token. values, mask: [B, T].
    """
    lengths = x.mask.sum(axis=1)
    terms = [
        float(x.values[b, t]) / (int(lengths[b]) if x.mode == "sequence_mean" else 1)
        for b, t in zip(*np.nonzero(x.mask), strict=True)
    ]
    return math.fsum(terms) / _total(x)


@taking(Aggregate)
def aggregate_gradient(x: Aggregate[Array, Mask]) -> NDArray[np.float64]:
    """d aggregate / d values, [B, T]: 1 / D, or 1 / (n_b D) for ``sequence_mean``; 0 if masked."""
    lengths = x.mask.sum(axis=1)
    each = np.maximum(lengths, 1) if x.mode == "sequence_mean" else np.ones_like(lengths)
    return np.where(x.mask, 1.0 / (each[:, None] * _total(x)), 0.0)
