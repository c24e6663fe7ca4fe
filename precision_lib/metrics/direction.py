"""Which way a metric gets worse, and on which scale two of its values are compared.

The hazard. A gate that flags every change punishes improvements, and one that compares all
metrics alike calls a step of a number format, which can only double, a regression by 100 %.

Scales:

``ratio``       an RMS or a magnitude: as a factor, on the scale of its logarithm
``difference``  a share or a rank correlation: as a difference
``magnitude``   has a sign, and 0 is best: the difference of the absolute values
``step``        a median of steps of a number format: a factor, and one doubling is no change, since
                the binade that the median lies in depends on the tokens that were drawn
``exact``       0 by construction: anything above it is a regression
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Direction:
    """How a metric is gated.

    Attributes:
        scale: see the module; "" for a metric that is recorded and not gated.
        worse: +1 where more is worse, -1 where less is.
        best: the value without any error; a distance from it is an error.
        absent: what a cell without this metric counts as; None where that is an error.
        kl_exponent: how the metric follows the true KL at which it was measured, which another
            seed's policy misses by some 10 %: the noise is the same, the signal its square root.
        worst: as bad as it can be at all; None: 1 for a share, else without end.
        reason: why a metric is not gated.
    """

    scale: str
    worse: int = 1
    best: float = 0.0
    absent: float | None = None
    kl_exponent: float = 0.0
    worst: float | None = None
    reason: str = ""


def not_gated(reason: str) -> Direction:
    return Direction("", reason=reason)


RATIO, SHARE, EXACT, STEP = (Direction(scale) for scale in ("ratio", "difference", "exact", "step"))
AGREEMENT = Direction("difference", worse=-1, best=1.0, worst=-1.0)
