"""Tests of means over clusters, with one false alarm in two thousand runs for all of them.

Tokens of a sequence may depend on each other, so the unit is a cluster: a sequence, or a stretch
of one where there are few. The statistic is Student's t with (clusters - 1) degrees of freedom.
"""

import math
from functools import cache

import numpy as np

from precision_lib.forensics.t_quantile import student_quantile
from precision_lib.mismatch.schema import Array

#: One run in a thousand may call pure precision noise a bug: half by its size, half by a pattern.
FALSE_ALARMS = 1e-3
#: Tests that a run makes beside those that correct for themselves.
TESTS = 12
#: How often one of them may reject rounding.
LEVEL = FALSE_ALARMS / 2 / TESTS


@cache
def critical(tests: int = 1, degrees: int = 10_000) -> float:
    """Student's t that ``tests`` comparisons exceed together with 1/2000 / TESTS."""
    level = LEVEL / max(tests, 1)
    if degrees > 200:
        return _normal_quantile(1 - level / 2)
    return student_quantile(max(degrees, 1), 1 - level)


def _normal_quantile(p: float) -> float:
    low, high = 0.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        inside = 0.5 * math.erfc(middle / math.sqrt(2)) > 1 - p
        low, high = (middle, high) if inside else (low, middle)
    return low


def z_of_mean(x: Array) -> float:
    """Mean over its standard error; 0 for fewer than two values or no spread."""
    if len(x) < 2:
        return 0.0
    spread = float(x.std(ddof=1))
    return float(x.mean() / (spread / math.sqrt(len(x)))) if spread > 0 else 0.0


#: Clusters that a test has at least, where the tokens allow it.
CLUSTERS, SHORTEST = 32, 16


def clusters(row: Array) -> Array:
    """[M] int64, the cluster of each token: its row, or a stretch of at least 16 tokens of it."""
    rows = int(row[-1]) + 1 if len(row) else 0
    parts = -(-CLUSTERS // max(rows, 1))
    if parts == 1:
        return row
    length = np.bincount(row, minlength=rows)
    starts = np.cumsum(length) - length
    place = np.arange(len(row)) - starts[row]
    size = np.maximum(np.ceil(length / parts), SHORTEST).astype(np.int64)
    labels = row * (parts + 1) + place // size[row]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def mean_and_error(x: Array, cluster: Array) -> tuple[float, float, int]:
    """Mean of all tokens, its standard error by cluster, and the degrees of freedom.

    The error is that of a ratio of sums, so that clusters may have any length.
    """
    count = np.bincount(cluster)
    mean = float(x.mean())
    residuals = np.bincount(cluster, x - mean)
    groups = len(count)
    if groups < 2:
        return mean, math.inf, 1
    error = math.sqrt(groups / (groups - 1) * float((residuals**2).sum())) / len(x)
    return mean, error, groups - 1


def chi_square_quantile(degrees: int, z: float) -> float:
    """The value that chi-square exceeds as often as a normal variable exceeds z (one side).

    Wilson and Hilferty (1931): the cube root is normal to a few per cent at z of 4.
    """
    a = 2 / (9 * degrees)
    return degrees * max(1 - a + z * math.sqrt(a), 0.0) ** 3
