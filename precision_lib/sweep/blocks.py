"""Differences between configurations over a few seeds: a randomised block design.

The hazard. Three seeds give a standard deviation that is itself off by a factor of two, and an
interval from it of 4.3 standard errors; leaving the seeds' common part in makes it wider still,
and calling every run an independent sample makes it too narrow. So the seed is a block: what a seed
does to all configurations alike drops out, and what is left is pooled over all of them.

y[c, s] = m + a_c + b_s + e_cs for C configurations and S seeds. With the residual variance v on
(C - 1)(S - 1) degrees of freedom, a_c - a_d is known with variance 2 v / S.
Source: Box, Hunter and Hunter, "Statistics for Experimenters", chapter 4.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from precision_lib.forensics.statistics import CONFIDENCE

Array = NDArray[np.float64]


@cache
def student_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """t with P(|T| <= t) = ``confidence`` for Student's T of so many degrees of freedom.

    P(|T| > t) is the regularised incomplete beta function I_x(degrees / 2, 1 / 2) at
    x = degrees / (degrees + t^2) (Abramowitz and Stegun, 26.7.1), solved by bisection.

    Raises:
        ValueError: for less than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom: give at least two seeds")
    import mpmath

    def outside(t: float) -> float:
        x = degrees / (degrees + t * t)
        value = mpmath.betainc(degrees / 2, 0.5, 0, x, regularized=True)
        return float(value)

    low, high = 0.0, 1.0
    while outside(high) > 1 - confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if outside(middle) > 1 - confidence else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Blocks:
    """A table of one figure, configurations by seeds.

    Attributes:
        table: [C, S], finite.
        names: C configurations.
    """

    table: Array
    names: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """S."""
        return int(self.table.shape[1])

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the residual."""
        return (len(self.names) - 1) * (self.seeds - 1)

    @property
    def residual_deviation(self) -> float:
        """sqrt(v): what is left besides configurations and seeds; NaN for one seed."""
        if self.degrees < 1:
            return math.nan
        y = self.table
        rest = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
        return float(np.sqrt((rest**2).sum() / self.degrees))

    def half_width(self, seeds: int | None = None, confidence: float = CONFIDENCE) -> float:
        """Of the interval of a difference, with so many seeds; inf for one seed."""
        count = seeds or self.seeds
        degrees = (len(self.names) - 1) * (count - 1)
        if degrees < 1 or self.degrees < 1:
            return math.inf
        quantile = student_quantile(degrees, confidence)
        return quantile * self.residual_deviation * math.sqrt(2 / count)

    def difference(
        self, first: str, second: str, confidence: float = CONFIDENCE
    ) -> tuple[float, float, float]:
        """(mean over seeds of first - second, low, high)."""
        i, j = self.names.index(first), self.names.index(second)
        value = float((self.table[i] - self.table[j]).mean())
        width = self.half_width(confidence=confidence)
        return value, value - width, value + width

    def seeds_needed(self, distance: float, most: int = 1000) -> int | None:
        """Seeds with which the half width is at most ``distance``; None where ``most`` are too few
        or nothing is known of the spread."""
        if self.degrees < 1:
            return None
        enough = (n for n in range(2, most + 1) if self.half_width(n) <= distance)
        return next(enough, None)
