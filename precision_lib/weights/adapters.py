"""LoRA: whether an engine's weight is W + s B A, and what it is otherwise.

The hazard. An adapter that is never sent leaves a healthy base model at the engine: the log-probs
move away slowly, and it looks like staleness.

A product of matrices has no bit-stable value, so the merged weight has an interval. Let
v = W + s B A in FP64, and d its uncertainty before the last rounding. FP32 sums of r products add
(r + 2) 2**-24 |s| |B| |A|. An exporter that merges in 16 bits rounds B A, s B A and W too, which
adds u (3 |s B A| + |W|) with u of that format, and 2 u |s| |B| |A| where it rounds A and B first.
The engine's value must lie between the roundings of v - d and v + d. The terms of W, A and B count
only where these are wider than the engine's format. Rows are read in a stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights.codes import SIGNIFICAND, Values, cast, decode
from precision_lib.weights.survey import value_pairs
from precision_lib.weights.tensors import DataTensor, wider

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices of one layer: ``a`` [r, K] and ``b`` [N, r] in FP64, their stored format."""

    a: Wide
    b: Wide
    fmt: str

    def product(self, start: int, stop: int) -> tuple[Wide, Wide]:
        """B A and |B| |A| of some rows, [rows, K]."""
        rows = self.b[start:stop]
        return rows @ self.a, np.abs(rows) @ np.abs(self.a)


def adapter(a: Values, b: Values, shape: tuple[int, ...], fmt: str) -> Adapter | None:
    """The adapter of a weight of ``shape``; None where the shapes do not fit."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    if wide_a.ndim != 2 or wide_b.ndim != 2 or wide_a.shape[0] != wide_b.shape[1]:
        return None
    product = (wide_b.shape[0], wide_a.shape[1])
    if shape == product:
        return Adapter(wide_a, wide_b, fmt)
    if shape == product[::-1]:  # GPT-2 stores [K, N]
        return Adapter(wide_b.T, wide_a.T, fmt)
    return None


def is_merged(weight: DataTensor, engine: DataTensor, lora: Adapter, scale: float) -> bool:
    """Whether every value of ``engine`` lies within the interval of W + s B A."""
    unit = 2.0 ** -min(SIGNIFICAND[weight.fmt], SIGNIFICAND[engine.fmt])
    rounds_weight = wider(weight.fmt, engine.fmt)
    rounds_matrices = wider(lora.fmt, engine.fmt)
    for wide, given, delta, size in _rows(weight, engine, lora):
        change = scale * delta
        value = wide + change
        error = 2.0**-24 * ((len(lora.a) + 2) * abs(scale) * size + np.abs(value))
        error += 3 * unit * np.abs(change)
        error += unit * (rounds_weight * np.abs(wide) + 2 * rounds_matrices * abs(scale) * size)
        low, high = (_rounded(v, engine.fmt) for v in (value - error, value + error))
        if not np.all((low <= given) & (given <= high)):
            return False
    return True


def fitted_scale(weight: DataTensor, engine: DataTensor, lora: Adapter) -> float:
    """The factor of B A that comes nearest to the engine's weight, by least squares."""
    power = product = 0.0
    for wide, given, delta, _ in _rows(weight, engine, lora):
        power += float(np.vdot(delta, delta))
        product += float(np.vdot(given - wide, delta))
    return product / power if power else 0.0


def _rows(
    weight: DataTensor, engine: DataTensor, lora: Adapter
) -> Iterator[tuple[Wide, Wide, Wide, Wide]]:
    """Some rows at a time: weight, engine, B A and |B| |A|, all FP64 [rows, K]."""
    start = 0
    for wide, given in value_pairs(weight, engine):
        stop = start + len(wide)
        yield wide.astype(np.float64), given.astype(np.float64), *lora.product(start, stop)
        start = stop


def _rounded(values: Wide, fmt: str) -> Wide:
    return decode(cast(values.astype(np.float32), fmt), fmt).astype(np.float64)
