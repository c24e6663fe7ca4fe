"""LoRA: whether an engine's weight is W + s B A, and what it is otherwise.

The hazard. An adapter that is never sent leaves a healthy base model at the engine: the log-probs
move away slowly, and it looks like staleness.

A product of matrices has no bit-stable value, so the merged weight has an interval. Let
v = W + s B A in FP64, and d its uncertainty before the last rounding. FP32 sums of r products add
(r + 2) 2**-24 |s| |B| |A|. An exporter that merges in 16 bits rounds B A, s B A and W too, which
adds u (3 |s B A| + |W|) with u of that format. The engine's value must lie between the roundings
of v - d and v + d. The term u |W| counts only where W itself is wider than the engine's format.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights.codes import SIGNIFICAND, Values, cast, decode

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Adapter:
    """A [r, K] and B [N, r] of one layer, FP64; ``delta`` is B A and ``size`` is |B| |A|."""

    rank: int
    delta: Wide
    size: Wide


def adapter(a: Values, b: Values, shape: tuple[int, ...]) -> Adapter | None:
    """The adapter of a weight of ``shape``; None where the shapes do not fit."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    if wide_a.ndim != 2 or wide_b.ndim != 2 or wide_a.shape[0] != wide_b.shape[1]:
        return None
    delta, size = wide_b @ wide_a, np.abs(wide_b) @ np.abs(wide_a)
    if delta.shape != shape and delta.T.shape == shape:  # GPT-2 stores [K, N]
        delta, size = delta.T, size.T
    return Adapter(wide_a.shape[0], delta, size) if delta.shape == shape else None


def is_merged(
    weight: Values, engine: Values, formats: tuple[str, str], lora: Adapter, scale: float
) -> bool:
    """Whether every value of ``engine`` lies within the interval of W + s B A.

    ``formats`` are those of W at the trainer and of the engine.
    """
    change = scale * lora.delta
    wide = weight.astype(np.float64)
    value = wide + change
    error = (lora.rank + 2) * 2.0**-24 * abs(scale) * lora.size + 2.0**-24 * np.abs(value)
    unit = 2.0 ** -min(SIGNIFICAND[fmt] for fmt in formats)
    error = error + 3 * unit * np.abs(change)
    if SIGNIFICAND[formats[0]] > SIGNIFICAND[formats[1]]:
        error = error + unit * np.abs(wide)
    low, high = (_rounded(v, formats[1]) for v in (value - error, value + error))
    return bool(np.all((low <= engine) & (engine <= high)))


def fitted_scale(weight: Values, engine: Values, lora: Adapter) -> float:
    """The factor of B A that comes nearest to the engine's weight, by least squares."""
    power = float(np.sum(lora.delta**2))
    change = engine.astype(np.float64) - weight.astype(np.float64)
    return float(np.sum(change * lora.delta)) / power if power else 0.0


def _rounded(values: Wide, fmt: str) -> Wide:
    return decode(cast(values.astype(np.float32), fmt), fmt).astype(np.float64)
