"""Number codes of stored tensors in numpy: names of formats, decoding, rounding once to nearest.

The hazard. A cast that rounds in another way than the exporter's calls a healthy export different.
The rules are tested on every 16-bit and 8-bit code against torch's own casts.

torch is not imported, so that the command stays below its memory limit. A *code* is the integer
or float that the file holds: bf16 and the 8-bit floats are unsigned integers, the others numpy's.
"""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.generic]
Values = NDArray[np.floating]

#: Name in safetensors files -> name of this project.
FROM_SAFETENSORS = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8_e4m3",
    "F8_E5M2": "fp8_e5m2",
    "F8_E8M0": "fp8_e8m0",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
#: Name of this project -> little-endian numpy type of the code.
CODE_TYPES = {
    "fp64": "<f8",
    "fp32": "<f4",
    "fp16": "<f2",
    "bf16": "<u2",
    "fp8_e4m3": "u1",
    "fp8_e5m2": "u1",
    "fp8_e8m0": "u1",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint64": "<u8",
    "uint32": "<u4",
    "uint16": "<u2",
    "uint8": "u1",
    "bool": "u1",
}
#: Significand bits of the floating-point formats that tensors are cast between.
SIGNIFICAND = {"fp64": 53, "fp32": 24, "fp16": 11, "bf16": 8}
#: A quantised weight has one of these formats and a scale beside it.
QUANTISED = ("fp8_e4m3", "int8")
E4M3_LARGEST = 448.0
#: A hash "in" it is that of FP32 values cut to bf16: a faulty cast, and no format.
TRUNCATED = "bf16 truncated"


def is_float(fmt: str) -> bool:
    """Whether ``fmt`` is one of the formats that tensors are cast between."""
    return fmt in SIGNIFICAND


def code_type(fmt: str) -> np.dtype[np.generic]:
    """Little-endian numpy type that holds a code of ``fmt``."""
    return np.dtype(CODE_TYPES[fmt])


def decode(codes: Codes, fmt: str) -> Values:
    """Values of ``codes`` [...] in FP32 (FP64 for ``fp64`` and wide integers), without rounding."""
    if fmt == "bf16":
        widened: Values = (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return widened
    if fmt in ("fp8_e4m3", "fp8_e5m2", "fp8_e8m0"):
        return np.asarray(_FP8_VALUES[fmt][codes])
    if fmt in ("fp64", "int64", "int32", "uint64", "uint32"):
        return codes.astype(np.float64)
    return codes.astype(np.float32, copy=False)


def nonfinite(codes: Codes, fmt: str) -> int:
    """How many ``codes`` of a float format are NaN or infinite; 0 for other formats."""
    if fmt == "bf16":
        return int(np.count_nonzero((codes.view(np.uint16) & 0x7F80) == 0x7F80))
    if is_float(fmt):
        return int(codes.size - np.count_nonzero(np.isfinite(decode(codes, fmt))))
    return 0


def cast(values: Values, fmt: str) -> Codes:
    """Codes of ``values`` [...] in ``fmt``, rounded once to nearest, ties to even.

    A NaN becomes the quiet NaN of torch in bf16. FP32 or FP64 values; bf16 takes FP32 values.

    Raises:
        ValueError: ``fmt`` is none of fp64, fp32, fp16, bf16, fp8_e4m3.
    """
    if fmt == TRUNCATED:
        return truncate_to_bf16(values)
    if fmt == "bf16":
        return _to_bf16(values.astype(np.float32, copy=False))
    if fmt == "fp8_e4m3":
        return _to_e4m3(values)
    if fmt in ("fp64", "fp32", "fp16"):
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(values.astype(code_type(fmt), copy=False))
    raise ValueError(f"no cast to {fmt}; formats: fp64, fp32, fp16, bf16, fp8_e4m3")


def truncate_to_bf16(values: Values) -> Codes:
    """bf16 codes of FP32 ``values`` with the lower 16 bits dropped: a faulty cast."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    return (bits >> np.uint32(16)).astype(np.uint16)


def _to_bf16(values: NDArray[np.float32]) -> Codes:
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + (odd + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
    exponents = bits & np.uint32(0x7F800000)
    if exponents.size and int(exponents.max()) == 0x7F800000:
        rounded[np.isnan(values)] = 0x7FC0
    return rounded


def _to_e4m3(values: Values) -> Codes:
    """E4M3 codes; a finite value beyond 448 becomes 448, NaN becomes 0x7f."""
    size = np.minimum(np.abs(values), values.dtype.type(E4M3_LARGEST))
    invalid = np.isnan(values)
    size[invalid] = 0
    exponent = np.where(size == 0, -6, np.maximum(np.frexp(size)[1] - 1, -6))
    eighths = np.rint(np.ldexp(size, 3 - exponent)).astype(np.int32)
    codes = ((exponent + 7) << 3) + eighths - 8
    codes = np.where(np.signbit(values), codes | 0x80, codes)
    codes[invalid] = 0x7F
    return np.asarray(codes.astype(np.uint8))


def _fp8_values(exponent_bits: int, mantissa_bits: int, bias: int) -> NDArray[np.float32]:
    """[256] values by the rule of E4M3 (one NaN code, no infinity) or E5M2 (as IEEE)."""
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    size = np.where(
        exponent > 0,
        np.ldexp(1 + fraction, exponent - bias),
        np.ldexp(fraction, 1 - bias),
    )
    if exponent_bits == 4:
        size[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        size[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    return np.where(codes >= 128, -size, size).astype(np.float32)


def _powers_of_two() -> NDArray[np.float32]:
    return np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


_FP8_VALUES = {
    "fp8_e4m3": _fp8_values(4, 3, 7),
    "fp8_e5m2": _fp8_values(5, 2, 15),
    "fp8_e8m0": _powers_of_two(),
}
