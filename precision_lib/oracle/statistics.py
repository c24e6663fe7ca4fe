"""Masked mean, whitening and group advantages.

The hazard. A mean that is rounded leaves a residue in x - mean, and a constant input divides that
residue by itself. So values are shifted by the first real one before anything is averaged: a
constant then gives exact zeros, and the sums are correctly rounded (``math.fsum``).

``mask[b, t]`` is True for a real token; masked slots may hold anything and give 0.
"""

import math

import numpy as np
from numpy.typing import NDArray


def masked_mean(x: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Mean over the slots where mask is True, by an exactly rounded sum; 0 for none."""
    real = x[mask].astype(np.float64).tolist()
    return math.fsum(real) / len(real) if real else 0.0


def masked_mean_gradient(x: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1/n at the n real slots, 0 elsewhere. x, mask and result of one shape."""
    gradient = np.zeros(x.shape)
    if mask.any():
        gradient[mask] = 1.0 / int(mask.sum())
    return gradient


def _standardise(x: list[float]) -> list[float]:
    """(x - mean) / std with the sample std (n - 1); zeros for a constant or a single value."""
    n = len(x)
    shifted = [value - x[0] for value in x]
    if not any(shifted):
        return [0.0] * n
    mean = math.fsum(shifted) / n
    centred = [value - mean for value in shifted]
    std = math.sqrt(math.fsum(c * c for c in centred) / (n - 1))
    return [c / std for c in centred]


def whiten(x: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(x - mean) / std over the real tokens, sample std (n - 1), 0 elsewhere.

    Constant input, a single token and an empty mask give 0. x, mask and result of one shape.
    """
    result = np.zeros(x.shape)
    result[mask] = _standardise(x[mask].astype(np.float64).tolist())
    return result


def group_advantages(rewards: NDArray[np.floating]) -> NDArray[np.float64]:
    """(r - mean) / std of each group, sample std; a constant group gives 0. [G, K] to [G, K]."""
    groups = rewards.astype(np.float64).tolist()
    return np.array([_standardise(group) for group in groups]).reshape(rewards.shape)
