"""The loss of direct preference optimisation, pair by pair."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def _margins(pc: Array, pr: Array, rc: Array, rr: Array) -> list[float]:
    """(pc - rc) - (pr - rr) of every pair, exactly summed."""
    return [
        math.fsum((float(a), -float(b), -float(c), float(d)))
        for a, b, c, d in zip(pc, pr, rc, rr, strict=True)
    ]


def _softplus(x: float) -> float:
    """log(1 + e^x) with a small relative error."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    """1 / (1 + e^-x) with a small relative error."""
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1 + small)


def dpo_loss(
    policy_chosen: Array,
    policy_rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    beta: float,
) -> float:
    """Mean over pairs of log(1 + exp(-beta m)); all [B]."""
    margins = _margins(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return math.fsum(_softplus(-beta * m) for m in margins) / len(margins)


def dpo_loss_gradients(
    policy_chosen: Array,
    policy_rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    beta: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """d dpo_loss / d policy_chosen and / d policy_rejected: -+ beta sigmoid(-beta m) / B, [B]."""
    margins = _margins(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    slope = np.array([-beta * _sigmoid(-beta * m) / len(margins) for m in margins])
    return slope, -slope
