"""Quantised copies made again from the trainer's tensor, and what is wrong with a copy.

The hazard. A copy that decodes to nearly the right values passes every tolerance and still adds
noise of its own to each log-prob. So scales and codes are compared with those of the recipe.

Recipe, as the specification states it: a scale is the largest size of its group over 448 (E4M3) or
127 (int8), in FP32; a group of zeros has scale 1; a code is the value over the scale, rounded once
to nearest. Groups: 128 x 128 blocks, rows (channels), or the whole tensor, by the scale's shape.

Exporters compute value / scale, or value * (1 / scale), in FP32. Three roundings of u = 2**-24 lie
between these, so a code is right when a quotient within 4 u of the exact one rounds to it, and a
scale within 4 u of the exact one is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights.codes import E4M3_LARGEST, Codes, Values, cast, decode
from precision_lib.weights.tensors import Tensor, values_of

LARGEST = {"fp8_e4m3": E4M3_LARGEST, "int8": 127.0}
SLACK = 4 * 2.0**-24
BLOCK = (128, 128)


@dataclass(frozen=True)
class Copy:
    """A quantised tensor as stored: codes [N, K], their format, scales [groups of N, groups of K].

    ``blocks`` is the size of a group. ``powers_of_two``: the configuration asks for such scales.
    """

    codes: Codes
    fmt: str
    scales: Values
    blocks: tuple[int, int]
    powers_of_two: bool = False

    def decoded(self) -> Values:
        """Code times scale, FP32 [N, K]."""
        return np.asarray(decode(self.codes, self.fmt) * _spread(self.scales, self))


def open_copy(codes: Tensor, scale: Tensor, config: Mapping[str, Any]) -> Copy | str:
    """The copy of an engine, or a sentence on why its scale does not fit; needs data of both."""
    shape = codes.shape if len(codes.shape) == 2 else (codes.shape[0], -1)
    stored, scales = codes.codes(), values_of(scale)
    if stored is None or scales is None:
        return "the manifest holds no codes"
    stored = stored.reshape(shape)
    described = config.get("quantization_config") or {}
    block = tuple(described.get("weight_block_size") or BLOCK)
    grid = _grid(scales, stored.shape, block)
    if grid is None:
        words = f"the scale {list(scales.shape)} fits no group of {list(stored.shape)}"
        if scales.size == stored.shape[1]:
            return f"{words}: it is of columns, the recipe's of rows"
        turned = _grid(scales.T, stored.shape, block) is not None
        return f"{words}: it is transposed" if turned else words
    powers = described.get("scale_fmt") == "ue8m0" or scale.fmt == "fp8_e8m0"
    return Copy(stored, codes.fmt, *grid, powers)


def _grid(
    scales: Values, shape: tuple[int, ...], block: tuple[int, ...]
) -> tuple[Values, tuple[int, int]] | None:
    """Scales as a matrix, and the group that each covers."""
    rows, columns = shape
    blocks = (-(-rows // block[0]), -(-columns // block[1]))
    if scales.size == 1:
        return scales.reshape(1, 1), (rows, columns)
    if scales.shape == blocks:
        return scales, (block[0], block[1])
    if scales.shape in ((rows,), (rows, 1)):
        return scales.reshape(rows, 1), (1, columns)
    return None


def quantise(values: Values, copy: Copy) -> Copy:
    """The copy that the recipe makes of ``values`` [N, K] with the groups of ``copy``."""
    sizes = _largest(values, copy)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scales = np.where(sizes == 0, np.float32(1), sizes / np.float32(LARGEST[copy.fmt]))
        if copy.powers_of_two:
            scales = np.exp2(np.ceil(np.log2(scales.astype(np.float64)))).astype(np.float32)
        scales = scales.astype(np.float32)
        quotients = values / _spread(scales, copy)
    return Copy(_codes(quotients, copy.fmt), copy.fmt, scales, copy.blocks, copy.powers_of_two)


def follows(values: Values, copy: Copy) -> bool:
    """Whether scales and codes are the recipe's for ``values``, up to FP32 rounding."""
    return scales_follow(values, copy) and codes_follow(values, copy)


def scales_follow(values: Values, copy: Copy) -> bool:
    """Whether every scale is the recipe's for ``values``, up to 4 u."""
    return _near(copy.scales, quantise_scales(values, copy))


def quantise_scales(values: Values, copy: Copy) -> NDArray[np.float64]:
    """Scales of the recipe in FP64; powers of two where they are asked for."""
    sizes = _largest(values, copy).astype(np.float64)
    scales = np.where(sizes == 0, 1.0, sizes / LARGEST[copy.fmt])
    if copy.powers_of_two:
        return np.asarray(np.exp2(np.ceil(np.log2(scales))))
    return np.asarray(scales)


def codes_follow(values: Values, copy: Copy) -> bool:
    """Whether each code is ``values`` over the *stored* scale, rounded once."""
    if not (np.isfinite(copy.scales).all() and (copy.scales > 0).all()):
        return False
    quotients = values.astype(np.float64) / _spread(copy.scales.astype(np.float64), copy)
    given = decode(copy.codes, copy.fmt).astype(np.float64)
    low, high = (
        decode(_codes(quotients * factor, copy.fmt), copy.fmt) for factor in (1 - SLACK, 1 + SLACK)
    )
    inside = (np.minimum(low, high) <= given) & (given <= np.maximum(low, high))
    return bool(inside.all())


def wrong_with(values: Values, copy: Copy) -> tuple[str, str]:
    """Kind and evidence for a copy that does not follow from ``values`` [N, K]."""
    decoded = decode(copy.codes, copy.fmt)
    zero_blocks = int(np.count_nonzero(_largest(values, copy) == 0))
    bad = int(np.count_nonzero(~np.isfinite(decoded)))
    bad_scales = int(np.count_nonzero(~np.isfinite(copy.scales)))
    if bad or bad_scales:
        of_zeros = f"; {zero_blocks} groups are zero, where 0/0 is NaN" if zero_blocks else ""
        return "non-finite", f"{bad} codes and {bad_scales} scales are not finite{of_zeros}"
    wanted = quantise(values, copy)
    ratio = copy.scales.astype(np.float64) / quantise_scales(values, copy)
    if codes_follow(values, Copy(copy.codes, copy.fmt, wanted.scales, copy.blocks)):
        return _wrong_scales(copy, wanted.scales, ratio)
    if not decoded.any() and values.any():
        return "zero", "all codes are 0"
    if np.array_equal(copy.codes.T, wanted.codes):
        return "transposed", "the codes are those of the transposed matrix"
    if codes_follow(values, copy):
        return _other_scales(ratio, copy)
    of_columns = replace(copy, scales=copy.scales.T, blocks=(values.shape[0], 1))
    if copy.blocks == (1, values.shape[1]) and follows(values, of_columns):
        return "quantised wrongly", "the scales are of columns, the recipe's of rows"
    unlike = np.count_nonzero(decoded != decode(wanted.codes, copy.fmt)) / decoded.size
    agree = "the scales agree" if _near(copy.scales, wanted.scales) else _ratios(ratio)
    return "quantised wrongly", f"{unlike:.1%} of the codes differ; {agree}"


def _wrong_scales(copy: Copy, wanted: Values, ratio: NDArray[np.float64]) -> tuple[str, str]:
    """The codes are right, the scales are not."""
    if ratio.size > 1 and np.ptp(ratio) <= 8 * SLACK * np.abs(ratio).max():
        factor = f"{ratio.flat[0]:.6g}"
        return "scaled", f"the codes are right, every scale is {factor} times the recipe's"
    if ratio.size == 1:
        words = ", its square" if _near(copy.scales, wanted**2) else ""
        words = ", its reciprocal" if _near(copy.scales, 1 / wanted) else words
        return "scaled", f"the codes are right, the scale is {ratio.flat[0]:.6g} times{words}"
    if _near(copy.scales, wanted**2):
        return "scaled", "the codes are right, every scale is applied twice (its square is stored)"
    if _near(copy.scales, 1 / wanted):
        return "scaled", "the codes are right, every scale is the reciprocal of the recipe's"
    if copy.scales.shape == wanted.T.shape and _near(copy.scales, wanted.T):
        return "transposed", "the codes are right, the matrix of scales is transposed"
    return "quantised wrongly", f"the codes are right; {_ratios(ratio)}"


def _other_scales(ratio: NDArray[np.float64], copy: Copy) -> tuple[str, str]:
    """The codes fit the stored scales, which are not those of the recipe."""
    powers = np.log2(copy.scales.astype(np.float64))
    if np.array_equal(powers, np.rint(powers)) and not copy.powers_of_two:
        return "quantised wrongly", "the scales are powers of two (UE8M0); the recipe's are FP32"
    return "quantised wrongly", f"the codes fit the stored scales, but {_ratios(ratio)}"


def _ratios(ratio: NDArray[np.float64]) -> str:
    off = np.count_nonzero(np.abs(ratio - 1) > SLACK)
    return (
        f"{off} of {ratio.size} scales differ from the recipe's, "
        f"by factors {ratio.min():.6g} to {ratio.max():.6g}"
    )


def _near(given: NDArray[Any], wanted: NDArray[Any]) -> bool:
    wide = wanted.astype(np.float64)
    if given.shape != wide.shape:
        return False
    return bool(np.all(np.abs(given - wide) <= 2 * SLACK * np.abs(wide)))


def _largest(values: Values, copy: Copy) -> Values:
    """Largest size of each group, [groups of N, groups of K]."""
    rows, columns = copy.blocks
    sizes = np.abs(values)
    sizes = np.maximum.reduceat(sizes, np.arange(0, values.shape[0], rows), axis=0)
    return np.asarray(np.maximum.reduceat(sizes, np.arange(0, values.shape[1], columns), axis=1))


def _spread(scales: Values, copy: Copy) -> Values:
    """The scale of each element, [N, K]."""
    rows, columns = copy.codes.shape
    spread = np.repeat(scales, copy.blocks[0], axis=0)[:rows]
    return np.repeat(spread, copy.blocks[1], axis=1)[:, :columns]


def _codes(quotients: Values, fmt: str) -> Codes:
    if fmt == "int8":
        rounded = np.nan_to_num(np.rint(quotients))
        return np.asarray(np.clip(rounded, -127, 127).astype(np.int8))
    return cast(quotients, fmt)
