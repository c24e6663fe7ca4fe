"""Whether one tensor is another one times a factor: of the whole, of each row or of each column.

Each element allows an interval of factors, since it was rounded: (e - h) / t to (e + h) / t with
h = 1.5 spacings of the format of e, for two roundings and one of the product. A factor exists
exactly when the intervals of all elements have a common point.
"""

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights.codes import SIGNIFICAND, Values

_SMALLEST = {"fp64": -1074, "fp32": -149, "fp16": -24, "bf16": -133}
_SAMPLE = 4096
#: A factor of fewer values says nothing.
_FEWEST = 4


def factor_of(wanted: Values, given: Values, fmt: str) -> str | None:
    """A sentence about the factors of ``given`` [..., C] over ``wanted``, None where none exists.

    Factors that may all be 1 are no finding of this kind. Work is float64 on a sample first.
    """
    if np.count_nonzero(wanted) < _FEWEST:
        return None
    groups: list[tuple[str, Values, Values]] = [("", wanted.reshape(1, -1), given.reshape(1, -1))]
    if wanted.ndim == 2 and min(wanted.shape) >= _FEWEST:
        groups += [("row", wanted, given), ("column", wanted.T, given.T)]
    for words, one, other in groups:
        step = max(1, one.shape[1] // _SAMPLE)
        some = slice(None, None, max(1, len(one) // 16))
        if _common(one[some, ::step], other[some, ::step], fmt) is None:
            continue
        common = _common(one, other, fmt)
        if common is not None:
            return _sentence(words, *common)
    return None


def _sentence(words: str, low: NDArray[np.float64], high: NDArray[np.float64]) -> str | None:
    if np.all((low <= 1) & (high >= 1)):
        return None
    middle = (low + high) / 2
    if not words:
        return f"every value is {float(middle[0]):.6g} times the trainer's"
    ends = f"{float(middle.min()):.4g} to {float(middle.max()):.4g}"
    return f"every {words} is multiplied by a factor of its own, {ends}"


def _common(
    wanted: Values, given: Values, fmt: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Lowest and highest common factor of each row, None where a row has none.

    A row of zeros allows every factor; 1 is taken.
    """
    if np.any((wanted == 0) & (given != 0)) or not np.isfinite(given).all():
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t, e = wanted.astype(np.float64), given.astype(np.float64)
        exponent = np.frexp(e)[1] - SIGNIFICAND[fmt]
        half = 1.5 * np.ldexp(1.0, np.maximum(exponent, _SMALLEST[fmt]))
        ends = np.sort(np.stack([(e - half) / t, (e + half) / t]), axis=0)
    zero = wanted == 0
    low = np.where(zero, -np.inf, ends[0]).max(axis=1)
    high = np.where(zero, np.inf, ends[1]).min(axis=1)
    if not np.all(low <= high):
        return None
    empty = zero.all(axis=1)
    return np.where(empty, 1.0, low), np.where(empty, 1.0, high)
