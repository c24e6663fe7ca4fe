"""The collapse curve of H1, derived: what roundings do to a log-ratio of a known size.

The hazard. A curve of measured points looks right whatever it shows. This one can be worked out:
near the reference the log-ratio d has mean square 2 KL, and a bf16 KL sees it through a grid of
some step h.

**Rounding both log-probs to a grid.** The phase on the grid is as good as random. d moves a value
by |d|/h = k + f cells, k whole: it lands k cells away with probability 1 - f and k + 1 cells away
with probability f. So the log-ratio is zero with probability max(0, 1 - |d|/h), and its squared
error is h^2 f (1 - f) on average. Averaged over normal d of mean square 2 KL, zeros and noise
follow from KL and h. For small KL, where most are zero, the noise over signal grows as KL^(-1/4);
for large KL as KL^(-1/2).

**Rounding the models.** The rounded policy and reference are further apart than the true ones.
Where that noise e is unrelated to d, the executed KL is half the mean square of d + e, so that
noise over signal is sqrt((executed KL - true KL) / true KL). e does not know how far the policy
moved, so this grows as KL^(-1/2).

KL in nats per token, h in nats.
"""

import math
from collections.abc import Callable

import numpy as np

#: Midpoints of |z| for a standard normal z, and their weights.
_Z = np.arange(0.0005, 8, 0.001)
_W = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()


def zero_share(kl: float, step: float) -> float:
    """Share of log-ratios that a grid of ``step`` makes exactly zero, in [0, 1]."""
    moves = _Z * math.sqrt(2 * kl) / step
    return float((_W * np.maximum(0, 1 - moves)).sum())


def grid_noise(kl: float, step: float) -> float:
    """RMS error over RMS of the log-ratio behind a grid of ``step``."""
    part = np.modf(_Z * math.sqrt(2 * kl) / step)[0]
    return float(step * math.sqrt((_W * part * (1 - part)).sum() / (2 * kl)))


def model_noise(kl: float, true_kl: float, executed_kl: float) -> float:
    """RMS error over RMS of the log-ratio of rounded models at a true KL of ``kl``.

    Args:
        true_kl, executed_kl: full-vocabulary KL of the exact and of the rounded models, at one
            known distance of policy and reference.
    """
    return math.sqrt(max(executed_kl - true_kl, 0.0) / kl)


def step_for(law: Callable[[float, float], float], kl: float, value: float) -> float:
    """The grid step at which a ``law`` that grows with the step takes ``value`` at ``kl``.

    Raises:
        ValueError: no step between 1e-9 and 1e3 nats does.
    """
    low, high = 1e-9, 1e3
    if not law(kl, low) <= value <= law(kl, high):
        raise ValueError(f"no grid step gives {value} at a KL of {kl}")
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if law(kl, middle) < value else (low, middle)
    return math.sqrt(low * high)
