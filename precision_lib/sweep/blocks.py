"""Differences between configurations over a few seeds: a randomised block design.

The hazard. Three seeds give a standard deviation that is itself off by a factor of two, and an
interval from it of 4.3 standard errors; leaving the seeds' common part in makes it wider still,
and calling every run an independent sample makes it too narrow. So the seed is a block: what a seed
does to all configurations alike drops out, and what is left is pooled over all of them.

y[c, s] = m + a_c + b_s + e_cs for C configurations and S seeds. With the residual variance v on
(C - 1)(S - 1) degrees of freedom, a_c - a_d is known with variance 2 v / S.
Source: Box, Hunter and Hunter, "Statistics for Experimenters", chapter 4.

What pooling costs, of the 95 % that are promised, for 8 configurations and 3 seeds: a configuration
with four times the variance of all others, baseline included, is covered in 86 %; one among six of
them beside a quiet baseline and its quiet twin in 97 %. Configurations that share half of their
variance with each other and not with the baseline (runs that have not parted yet, after a few
steps) are covered in 90 %, such that share three quarters in 85 %.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from precision_lib.forensics.statistics import CONFIDENCE
from precision_lib.forensics.t_quantile import student_quantile

Array = NDArray[np.float64]
#: Nobody trains more; a number beyond it is called unknown.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Blocks:
    """A table of one figure, configurations by seeds.

    Attributes:
        table: [C, S], finite.
        names: C configurations.
    """

    table: Array
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not np.isfinite(self.table).all():
            raise ValueError("a figure that is not finite would spoil the intervals of all others")

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
        count = self.seeds if seeds is None else seeds
        degrees = (len(self.names) - 1) * (count - 1)
        if degrees < 1 or self.degrees < 1:
            return math.inf
        quantile = student_quantile(degrees, confidence)
        return quantile * self.residual_deviation * math.sqrt(2 / count)

    def reach(self, power: float, seeds: int | None = None) -> float:
        """How far a true difference lies beyond a limit that its interval clears with ``power``.

        The half width, and as many standard errors as the estimate falls short of the truth with
        probability 1 - power; inf for one seed.
        """
        count = self.seeds if seeds is None else seeds
        width = self.half_width(count)
        if not math.isfinite(width):
            return math.inf
        error = self.residual_deviation * math.sqrt(2 / count)
        return width + NormalDist().inv_cdf(power) * error

    def mean(self, name: str) -> float:
        """Over the seeds."""
        return float(self.table[self.names.index(name)].mean())

    def difference(
        self, first: str, second: str, confidence: float = CONFIDENCE
    ) -> tuple[float, float, float]:
        """(mean over seeds of first - second, low, high)."""
        value = self.mean(first) - self.mean(second)
        width = self.half_width(confidence=confidence)
        return value, value - width, value + width

    def share(
        self, first: str, second: str, whole: str, seeds: int | None = None
    ) -> tuple[float, float, float]:
        """(r, low, high) of r = (first - second) / whole, a ratio of means over these seeds.

        The whole is measured too, with an error that it shares with first or second where it is one
        of them. Fieller's interval holds every r that is not refuted by first - second - r whole,
        whose variance is v/S (2 - 2 r ([first is whole] - [second is whole]) + r^2), and that is
        exact; it has no end, (-inf, inf), where the whole cannot be told from 0. The seeds are
        taken as given: where shares far from 0 are to hold for all seeds there are, it is too
        narrow. With a seed effect of twice the residual deviation it covers that share in 95 % of
        all sweeps at a tenth lost, and in 87 % at a half.
        Source: Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).

        Args:
            seeds: the interval that so many seeds of these means and this spread would have.
        """
        over, under = self.mean(first) - self.mean(second), self.mean(whole)
        common = (first == whole) - (second == whole)
        spread = self.half_width(seeds) ** 2 / 2
        square = under**2 - spread
        if square <= 0:
            return over / under if under else math.nan, -math.inf, math.inf
        middle = (over * under - common * spread) / square
        width = math.sqrt(max(0.0, middle**2 - (over**2 - 2 * spread) / square))
        return over / under, middle - width, middle + width


def seeds_needed(decides: Callable[[int], bool]) -> int | None:
    """The fewest seeds, two or more, that decide; None where :data:`MOST_SEEDS` do not.

    Args:
        decides: whether so many seeds do; more of them must decide as well.
    """
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, True, key=decides)
    return counts[place] if place < len(counts) else None
