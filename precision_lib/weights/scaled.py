"""Whether one tensor is another one times a factor: of the whole, of each row or of each column.

Each element allows an interval of factors, since it was rounded: (e - h) / t to (e + h) / t with
h = 1.5 spacings of the format of e, for two roundings and one of the product. A factor exists
exactly when the intervals of all elements have a common point.
"""

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights.codes import SIGNIFICAND, Values
from precision_lib.weights.survey import as_matrix, value_pairs, without_common
from precision_lib.weights.tensors import DataTensor

_SMALLEST = {"fp64": -1074, "fp32": -149, "fp16": -24, "bf16": -133}
#: A factor of fewer values says nothing.
_FEWEST = 4
_ROWS_AT_ONCE = 64

Ends = tuple[NDArray[np.float64], NDArray[np.float64]]


def factor_of(trainer: DataTensor, engine: DataTensor) -> str | None:
    """A sentence about the factors of ``engine`` over ``trainer``, None where none exists.

    Factors that may all be 1 are no finding of this kind. It stops at the first rows that fit none.
    """
    rows, columns = as_matrix(engine.shape)
    lines = ("row", "column") if min(rows, columns) >= _FEWEST else ()
    quotients: dict[str, list[Ends]] = {words: [] for words in ("", *lines)}
    if rows * columns < _FEWEST:
        return None
    for wanted, given in value_pairs(trainer, engine):
        if not np.isfinite(np.vdot(given, given)):
            wanted, given = without_common(wanted, given)
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            ends = _intervals(wanted[some], given[some], engine.fmt)
            if ends is None:
                return None
            for words in list(quotients):
                if not _narrow(quotients, words, ends):
                    del quotients[words]
            if not quotients:
                return None
    for words, parts in quotients.items():
        ends = parts[0] if words != "row" else _joined(parts)
        if np.isfinite(ends[0]).any():
            return _sentence(words, *ends)
    return None


def _narrow(found: dict[str, list[Ends]], words: str, ends: Ends) -> bool:
    """Add the intervals of some rows; False where a factor has none left."""
    low, high = ends
    if words == "row":
        part = low.max(axis=1), high.min(axis=1)
        found[words].append(part)
        return bool(np.all(part[0] <= part[1]))
    axis = None if words == "" else 0
    part = low.max(axis=axis, keepdims=True), high.min(axis=axis, keepdims=True)
    if found[words]:
        before = found[words][0]
        part = np.maximum(before[0], part[0]), np.minimum(before[1], part[1])
    found[words] = [part]
    return bool(np.all(part[0] <= part[1]))


def _joined(parts: list[Ends]) -> Ends:
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


def _sentence(words: str, low: NDArray[np.float64], high: NDArray[np.float64]) -> str | None:
    used = np.isfinite(low) & np.isfinite(high)  # lines of zeros allow every factor
    low, high = low[used], high[used]
    if np.all((low <= 1) & (high >= 1)):
        return None
    middle = (low + high) / 2
    if not words:
        return f"every value is {float(middle[0]):.6g} times the trainer's"
    ends = f"{float(middle.min()):.4g} to {float(middle.max()):.4g}"
    return f"every {words} is multiplied by a factor of its own, {ends}"


def _intervals(wanted: Values, given: Values, fmt: str) -> Ends | None:
    """Lowest and highest factor of each element [R, C]; None where one has none at all."""
    zero = wanted == 0
    if np.any(zero & (given != 0)) or not np.isfinite(given).all():
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t, e = wanted.astype(np.float64), given.astype(np.float64)
        exponent = np.frexp(e)[1] - SIGNIFICAND[fmt]
        half = 1.5 * np.ldexp(1.0, np.maximum(exponent, _SMALLEST[fmt]))
        first, second = (e - half) / t, (e + half) / t
    low = np.where(zero, -np.inf, np.minimum(first, second))
    high = np.where(zero, np.inf, np.maximum(first, second))
    return low, high
