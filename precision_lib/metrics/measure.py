"""A metric: a function of sums over sequences, with its unit and the way in which it gets worse.

The hazard. Two functions of one name give two numbers, and nobody sees which of them was printed.
So the main job, training and whatever else measures a thing call the same one.

N sequences, R resamples; sums are name to [N], totals name to a number or an [R] array.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from precision_lib.metrics.direction import Direction

Array = NDArray[np.float64]
Totals = Mapping[str, Array]
#: From totals to a metric, a number or an [R] array as they are.
MetricFunction = Callable[[Totals], Array]


class Measure(NamedTuple):
    """One metric.

    Attributes:
        function: of totals.
        unit: what the number counts.
        direction: which way it gets worse; None for what stands in the evidence alone.
        elements: name of the sum that says how many were compared; "" for the study's own.
    """

    function: MetricFunction
    unit: str
    direction: Direction | None = None
    elements: str = ""

    def of(self, sums: Mapping[str, Any]) -> float:
        """The metric over everything in ``sums``, arrays or tensors by name; no interval."""
        return float(self.function({k: np.asarray(float(x.sum())) for k, x in sums.items()}))


def share(part: str, whole: str = "tokens") -> MetricFunction:
    """Sum over sum; 0 where nothing could happen: in a resample that drew nothing of the kind."""

    def shared(totals: Totals) -> Array:
        counted = np.asarray(totals[whole])
        return np.asarray(totals[part]) / np.where(counted > 0, counted, 1)

    return shared


def root_mean_square(squares: str, per: str) -> MetricFunction:
    """Root of :func:`share`: an RMS, or an RMS over another one."""
    ratio = share(squares, per)
    return lambda totals: np.sqrt(ratio(totals))


def level_counts(levels: Array, sequence: NDArray[np.int64], count: int) -> dict[str, Array]:
    """How often each power of two occurs in each sequence: sums from which a median is taken.

    A median is no function of sums, but that of steps of a number format is: they are powers of
    two, so counts per power say everything.

    Args:
        levels: [M], powers of two.
        sequence: [M], the sequence of each, numbered from 0.
        count: N, number of sequences.

    Returns:
        ``level:<exponent>`` to [N] counts, for :func:`median_level`.
    """
    exponents = np.log2(levels).astype(np.int64)
    return {
        f"level:{e}": np.bincount(sequence[exponents == e], minlength=count).astype(np.float64)
        for e in np.unique(exponents)
    }


def median_level(totals: Totals) -> Array:
    """The (lower) median of the powers of two counted by :func:`level_counts`."""
    exponents = sorted(int(name.split(":")[1]) for name in totals if name.startswith("level:"))
    counts = np.stack([np.asarray(totals[f"level:{e}"]) for e in exponents])
    reached = counts.cumsum(0) >= counts.sum(0) / 2
    median: Array = np.exp2(np.array(exponents, dtype=np.float64))[reached.argmax(0)]
    return median
