"""Means of token losses over tokens or sequences, with a denominator that may be given.

The hazard. A mean of means is another number than the mean, and of the same size.

``mask[b, t]`` is True for a real token, anywhere; masked slots may hold anything and never enter.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def _weights(mask: Mask, mode: str, denominator: float | None) -> NDArray[np.float64]:
    """What every token's loss is multiplied by, [B, T]."""
    lengths = mask.sum(axis=1)
    count = int(lengths.sum()) if mode == "token_mean" else int((lengths > 0).sum())
    total = max(count, 1) if denominator is None else denominator
    each = np.maximum(lengths, 1) if mode == "sequence_mean" else np.ones_like(lengths)
    return np.where(mask, 1.0 / (each[:, None] * total), 0.0)


def aggregate(values: Array, mask: Mask, mode: str, denominator: float | None) -> float:
    """Sum over real tokens of values / D; for ``sequence_mean`` also over the sequence's length.

    D is the denominator; without one the number of real tokens (``token_mean``), or of sequences
    with a real token. values, mask: [B, T].
    """
    lengths = mask.sum(axis=1)
    count = int(lengths.sum()) if mode == "token_mean" else int((lengths > 0).sum())
    total = max(count, 1) if denominator is None else denominator
    terms = [
        float(values[b, t]) / (int(lengths[b]) if mode == "sequence_mean" else 1)
        for b, t in zip(*np.nonzero(mask), strict=True)
    ]
    return math.fsum(terms) / total


def aggregate_gradient(
    values: Array, mask: Mask, mode: str, denominator: float | None
) -> NDArray[np.float64]:
    """d aggregate / d values, [B, T]: 1 / D, or 1 / (n_b D) for ``sequence_mean``; 0 if masked."""
    return _weights(mask, mode, denominator)
