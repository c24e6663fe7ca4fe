"""Statistics of a tensor that comes in pieces: they narrow a difference down, and prove nothing."""

import functools
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from precision_lib.weights.codes import Values

#: Values at equal distances that a manifest keeps of each tensor.
SKETCH = 16


@dataclass(frozen=True)
class Statistics:
    """What narrows a difference down; never a reason to call two tensors equal.

    Attributes:
        norm: root of the sum of squares of the finite values, four digits.
        zeros, nonfinite: counts of elements.
        sketch: values at equal distances in row-major order, at most :data:`SKETCH`.
    """

    norm: float
    zeros: int
    nonfinite: int
    sketch: tuple[float, ...]

    @property
    def constant(self) -> bool:
        """Whether all values of the sketch are one; always for a single value."""
        return len(set(self.sketch)) <= 1


#: Names of the figures, as a manifest has them.
STATISTICS = tuple(field.name for field in fields(Statistics))


class Counts:
    """Statistics of a tensor that comes in pieces."""

    def __init__(self, size: int) -> None:
        self._squares, self._zeros, self._nonfinite, self._seen = 0.0, 0, 0, 0
        self._wanted = sketch_places(size)
        self._sketch: list[float] = []

    def add(self, values: Values) -> None:
        squares = float(np.dot(values, values)) if values.size else 0.0
        if not np.isfinite(squares):
            finite = np.isfinite(values)
            self._nonfinite += int(values.size - np.count_nonzero(finite))
            wide = values[finite].astype(np.float64)
            squares = float(np.dot(wide, wide))
        self._squares += squares
        self._zeros += int(values.size - np.count_nonzero(values))
        inside = (self._wanted >= self._seen) & (self._wanted < self._seen + values.size)
        self._sketch += [float(x) for x in values[self._wanted[inside] - self._seen]]
        self._seen += values.size

    def result(self) -> Statistics:
        norm = float(f"{np.sqrt(self._squares):.4g}")
        return Statistics(norm, self._zeros, self._nonfinite, tuple(self._sketch))


@functools.lru_cache(maxsize=1024)
def sketch_places(size: int) -> Any:
    """Flat places of the sketch's values in a tensor of ``size`` elements."""
    return (np.arange(min(SKETCH, size)) * size) // max(min(SKETCH, size), 1)
