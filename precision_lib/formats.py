"""Number formats: significand bits, unit roundoff, ulp, and rounding to nearest.

The hazard. A precision verdict is only as good as the model of the format behind it, and
emulators of formats are wrong in the places that nobody draws at random: subnormals, ties, the
step at a power of two, overflow. So everything here is checked on every one of the 65,536 codes
of the 16-bit formats, and of the 256 codes of the FP8 formats, against the native casts.

Two facts worth knowing before using a native cast as the truth:

- ``float64 -> bfloat16`` in torch goes through float32 and rounds **twice**:
  ``1 + 2**-8 + 2**-40`` becomes 1 instead of 1.0078125. :func:`round_to` rounds once.
- What ``float32 -> float8_e4m3fn`` does beyond 448 depends on the torch release (NaN in older
  ones, 448 in 2.13). :func:`round_to` gives NaN there, as the format has no infinity.

Notation: p is the number of significand bits including the implicit one, emin and emax the
exponents of the smallest and largest normal power of two, u = 2**-p the unit roundoff.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: the name used in configurations and records.
        significand_bits: p, including the implicit bit.
        emin: exponent of the smallest normal number, 2**emin.
        emax: exponent of the largest power of two that is finite, 2**emax.
        dtype: the torch dtype that stores it.
        largest: the largest finite value.
        has_inf: False where overflow has no infinity to go to.
    """

    name: str
    significand_bits: int
    emin: int
    emax: int
    dtype: torch.dtype
    largest: float
    has_inf: bool = True

    @property
    def unit_roundoff(self) -> float:
        """u = 2**-p: the largest relative error of rounding a normal value to nearest."""
        return 2.0**-self.significand_bits

    @property
    def machine_epsilon(self) -> float:
        """2u = 2**(1-p): the distance from 1 to the next larger value."""
        return 2.0 ** (1 - self.significand_bits)

    @property
    def smallest_normal(self) -> float:
        """2**emin."""
        return 2.0**self.emin

    @property
    def smallest_subnormal(self) -> float:
        """2**(emin - p + 1), the ulp of everything below the smallest normal number."""
        return 2.0 ** (self.emin - self.significand_bits + 1)


def _ieee(name: str, bits: int, emin: int, emax: int, dtype: torch.dtype) -> Format:
    return Format(name, bits, emin, emax, dtype, (2.0 - 2.0 ** (1 - bits)) * 2.0**emax)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _ieee("fp64", 53, -1022, 1023, torch.float64),
        _ieee("fp32", 24, -126, 127, torch.float32),
        _ieee("fp16", 11, -14, 15, torch.float16),
        _ieee("bf16", 8, -126, 127, torch.bfloat16),
        _ieee("fp8_e5m2", 3, -14, 15, torch.float8_e5m2),
        # OCP E4M3 spends its top code on NaN instead of infinity: 448 = 1.75 * 2**8.
        Format("fp8_e4m3", 4, -6, 8, torch.float8_e4m3fn, 448.0, has_inf=False),
    )
}


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        ValueError: for a name that is not in :data:`FORMATS`.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(
            f"unknown number format {name!r}; use one of {', '.join(FORMATS)}"
        ) from None


def format_of(dtype: torch.dtype) -> Format:
    """The format that ``dtype`` stores.

    Raises:
        ValueError: for a dtype that is not a supported floating-point format.
    """
    for fmt in FORMATS.values():
        if fmt.dtype == dtype:
            return fmt
    raise ValueError(
        f"{dtype} is not a supported floating-point format; "
        f"use one of {', '.join(str(f.dtype) for f in FORMATS.values())}"
    )


def _as_float64(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point():
        raise TypeError(f"expected a floating-point tensor, got {x.dtype}; convert it first")
    return x.to(torch.float64)


def ulp(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """The step of ``fmt`` at each value: 2**(max(floor(log2 |x|), emin) - p + 1).

    Args:
        x: any shape, any floating-point dtype.
        fmt: the format whose grid is meant; ``x`` itself need not lie on it.

    Returns:
        float64 tensor of the same shape. At a power of two it is the step **above** it. 0 and
        subnormals have the smallest subnormal; inf and NaN have NaN.
    """
    wide = _as_float64(x)
    _, exponent = torch.frexp(wide)  # |x| = m * 2**exponent with m in [1/2, 1)
    exponent = (exponent - 1).clamp(min=fmt.emin)
    exponent = torch.where(wide == 0, torch.full_like(exponent, fmt.emin), exponent)
    step = torch.ldexp(torch.ones_like(wide), exponent - fmt.significand_bits + 1)
    return torch.where(torch.isfinite(wide), step, torch.full_like(wide, torch.nan))


def round_to(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Round to the nearest value of ``fmt``, ties to even, once.

    Args:
        x: any shape, any floating-point dtype.

    Returns:
        float64 tensor of the same shape with values of ``fmt``. Beyond the largest value the
        IEEE rule holds: at or above ``largest + ulp/2`` the result is infinite (NaN in a format
        without infinity). Signed zeros, infinities and NaN are kept.
    """
    wide = _as_float64(x)
    if fmt.dtype == torch.float64:
        return wide
    finite = torch.isfinite(wide)
    step = ulp(torch.where(finite, wide, torch.zeros_like(wide)), fmt)
    rounded = torch.round(wide / step) * step  # exact: step is a power of two
    overflow = torch.full_like(wide, torch.inf if fmt.has_inf else torch.nan)
    rounded = torch.where(rounded.abs() > fmt.largest, torch.copysign(overflow, wide), rounded)
    rounded = torch.where(rounded == 0, torch.copysign(torch.zeros_like(wide), wide), rounded)
    beyond = wide if fmt.has_inf else torch.full_like(wide, torch.nan)
    return torch.where(finite, rounded, beyond)
