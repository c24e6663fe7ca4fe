"""Quantiles of Student's t, far into the tail.

The hazard. With 7 degrees of freedom the quantile at one in a million is 14; the normal one is 5.
"""

import math
from functools import cache

import numpy as np


@cache
def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """t with P(|T| <= t) = ``confidence`` for Student's T of so many degrees of freedom.

    By bisection.

    Raises:
        ValueError: for less than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom: give at least two seeds or clusters")
    low, high = 0.0, 1.0
    while _inside(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _inside(t: float, degrees: int) -> float:
    """P(|T| <= t), a finite series in the cosine of atan(t / sqrt(degrees)).

    Source: Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even).
    """
    angle, odd = math.atan(t / math.sqrt(degrees)), degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    j = np.arange(1, (degrees - odd) // 2)
    ratios = (2 * j - 1 + odd) / (2 * j + odd) * math.cos(angle) ** 2
    series = math.sin(angle) * (1 + float(np.cumprod(ratios).sum()))
    return 2 / math.pi * (angle + math.cos(angle) * series) if odd else series
