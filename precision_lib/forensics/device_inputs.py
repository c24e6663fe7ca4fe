"""Inputs of the device checks: operands without room for an error, every exponent, subnormals.

All are on the CPU and drawn from a generator of their own. m rows, n columns, k the inner
dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib.formats import FORMATS, Format

#: Inner dimensions of the models' products.
INNER = (64, 256, 688, 4096)
#: Sums of whole numbers below 2^24 are exact in FP32.
_EXACT_BITS = FORMATS["fp32"].significand_bits
#: Scale of the exact sums: all of them stay below 2^15, within fp16.
_SCALE = 2.0**-9


@dataclass(frozen=True)
class Operands:
    """Two matrices to multiply.

    Attributes:
        kind: how they were made, a key of :data:`OPERANDS`.
        left, right: [m, k] and [k, n] of one dtype.
        exact: whether the result has to be the exact product, rounded once.
    """

    kind: str
    left: Tensor
    right: Tensor
    exact: bool


def _whole(low: int, high: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Whole numbers in [low, high) of either sign, float64."""
    size = torch.randint(low, high, shape, generator=generator)
    return (size * _signs(shape, generator)).double()


def _odd(bits: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Odd numbers of exactly ``bits`` bits and either sign, float64."""
    size = 2 * torch.randint(2 ** (bits - 2), 2 ** (bits - 1), shape, generator=generator) + 1
    return (size * _signs(shape, generator)).double()


def _signs(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return 2 * torch.randint(0, 2, shape, generator=generator) - 1


def single_term(fmt: Format, inner: int, shape: tuple[int, int], seed: int) -> Operands:
    """Operands of p bits, one nonzero row per column of the right one."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    p = fmt.significand_bits
    left = _odd(p, (rows, inner), generator) * fmt.machine_epsilon
    right = torch.zeros(inner, columns, dtype=torch.float64)
    place = torch.randint(0, inner, (columns,), generator=generator)
    right[place, torch.arange(columns)] = _odd(p, (1, columns), generator)[0] * fmt.machine_epsilon
    return Operands("single_term", left.to(fmt.dtype), right.to(fmt.dtype), exact=True)


def exact_sums(fmt: Format, inner: int, shape: tuple[int, int], seed: int) -> Operands:
    """Whole numbers, the left ones odd, with k max|a| max|b| below 2^24; then scaled."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    room = _EXACT_BITS - (inner - 1).bit_length()
    left_bits = min(fmt.significand_bits, room)
    right_bits = max(1, min(fmt.significand_bits, room - left_bits))
    left = _odd(left_bits, (rows, inner), generator)
    right = _whole(1, 2**right_bits, (inner, columns), generator) * _SCALE
    return Operands("exact_sums", left.to(fmt.dtype), right.to(fmt.dtype), exact=True)


def normal(fmt: Format, inner: int, shape: tuple[int, int], seed: int) -> Operands:
    """Normal activations and weights of deviation 1 / sqrt(k)."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator) * inner**-0.5
    return Operands("normal", left.to(fmt.dtype), right.to(fmt.dtype), exact=False)


#: Kind to a function of (format, k, (m, n), seed).
OPERANDS: dict[str, Callable[[Format, int, tuple[int, int], int], Operands]] = {
    "single_term": single_term,
    "exact_sums": exact_sums,
    "normal": normal,
}


def every_exponent(fmt: Format) -> Tensor:
    """Values at every exponent of ``fmt``, subnormals included, of both signs; float64 [n].

    The significands are 1, the two ties above it, one just above and one just below a tie, 3/2 and
    the tie below 2. 0, infinities and NaN are added.
    """
    u = fmt.unit_roundoff
    significands = [1, 1 + u, 1 + 3 * u, 1 + u + u / 4, 1 + 3 * u - u / 4, 1.5, 2 - u]
    lowest = fmt.emin - fmt.significand_bits  # half the smallest subnormal: a tie with 0
    positive = [_times_power(s, e) for e in range(lowest, fmt.emax + 1) for s in significands]
    positive += [0.0, torch.inf]
    values = torch.tensor(positive, dtype=torch.float64)
    return torch.cat([values, -values, torch.tensor([torch.nan], dtype=torch.float64)])


def _times_power(significand: float, exponent: int) -> float:
    """significand 2^exponent, rounded once where it is subnormal in float64."""
    return significand * 2.0**exponent if exponent >= -1074 else significand / 2 * 2.0**-1074


def subnormal_pairs(fmt: Format) -> tuple[Tensor, Tensor]:
    """Pairs whose exact product is subnormal in ``fmt`` or has a subnormal factor; [n] each.

    Powers of two and the largest subnormal times 1 and times 2^(p - 1), the smallest normal number
    times powers of two that make it subnormal; of both signs.
    """
    p, smallest = fmt.significand_bits, fmt.smallest_subnormal
    powers = [smallest * 2.0**i for i in range(p - 1)]
    subnormal = [*powers, fmt.smallest_normal - smallest]
    pairs = [(x, factor) for x in subnormal for factor in (1.0, 2.0 ** (p - 1))]
    pairs += [(fmt.smallest_normal, 2.0**-i) for i in range(1, p)]
    left, right = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    return torch.cat([left, -left]).to(fmt.dtype), torch.cat([right, right]).to(fmt.dtype)
