"""The loss of direct preference optimisation, pair by pair."""

import math

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import Dpo, taking

Array = NDArray[np.floating]


def _margins(x: Dpo[Array]) -> list[float]:
    """(pc - rc) - (pr - rr) of every pair, exactly summed."""
    pairs = zip(x.policy_chosen, x.policy_rejected, x.ref_chosen, x.ref_rejected, strict=True)
    return [math.fsum((float(a), -float(b), -float(c), float(d))) for a, b, c, d in pairs]


def _softplus(x: float) -> float:
    """log(1 + e^x) with a small relative error."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    """1 / (1 + e^-x) with a small relative error."""
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1 + small)


@taking(Dpo)
def dpo_loss(x: Dpo[Array]) -> float:
    """Mean over pairs of log(1 + exp(-beta m)); all [B]."""
    margins = _margins(x)
    return math.fsum(_softplus(-x.beta * m) for m in margins) / len(margins)


@taking(Dpo)
def dpo_loss_gradients(x: Dpo[Array]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """d dpo_loss / d policy_chosen and / d policy_rejected: -+ beta sigmoid(-beta m) / B, [B]."""
    margins = _margins(x)
    slope = np.array([-x.beta * _sigmoid(-x.beta * m) / len(margins) for m in margins])
    return slope, -slope
