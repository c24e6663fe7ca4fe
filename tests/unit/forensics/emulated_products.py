"""Matrix products as devices compute them, sound and unsound, emulated on the CPU.

``left`` is [m, k], ``right`` [k, n], both of one dtype; every result is [m, n] of that dtype.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from precision_lib.formats import Format, round_to

TF32 = Format("tf32", 11, -126, 127, torch.float32, (2 - 2.0**-10) * 2.0**127)


def in_parts(parts: int) -> Callable[[Tensor, Tensor], Tensor]:
    """FP32 sums of ``parts`` parts of k, added in FP32, rounded once: sound."""

    def product(left: Tensor, right: Tensor) -> Tensor:
        return sum(_fp32_parts(left, right, parts)).to(left.dtype)  # type: ignore[union-attr]

    return product


def _fp32_parts(left: Tensor, right: Tensor, parts: int) -> list[Tensor]:
    edges = torch.linspace(0, left.shape[1], parts + 1).long().tolist()
    return [left[:, a:b].float() @ right[a:b].float() for a, b in pairwise(edges)]


def tensor_core(block: int, extra_bits: int) -> Callable[[Tensor, Tensor], Tensor]:
    """:func:`tensor_core_sums`, rounded once."""
    return lambda left, right: tensor_core_sums(left, right, block, extra_bits).to(left.dtype)


def tensor_core_sums(left: Tensor, right: Tensor, block: int, extra_bits: int) -> Tensor:
    """Blocks of products added to the accumulator by cutting bits off; FP32, not rounded further.

    Args:
        block: products per step: 8 on Ampere, 16 on Hopper.
        extra_bits: of the alignment beyond FP32's 24: 1 on Ampere, 2 on Hopper; -10 for the 14
            bits that Hopper keeps for FP8, which is unsound for 16-bit formats.
    """
    bits = 24 + min(extra_bits, 0)
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float64)
    for a, b in zip(left.double().split(block, 1), right.double().split(block), strict=True):
        terms = a.unsqueeze(-1) * b.unsqueeze(0)
        exponents = _exponent(a).unsqueeze(-1) + _exponent(b).unsqueeze(0)
        highest = torch.where(terms != 0, exponents, -1000).amax(1).maximum(_exponent(total))
        grid = torch.ldexp(torch.ones_like(total), highest - 23 - extra_bits)
        total = _cut(total, grid) + _cut(terms, grid.unsqueeze(1)).sum(1)
        total = _cut(total, torch.ldexp(torch.ones_like(total), _exponent(total) - bits + 1))
    return total.to(torch.float32)


def _exponent(x: Tensor) -> Tensor:
    """floor(log2 |x|), and -1000 for 0."""
    return torch.where(x != 0, torch.frexp(x).exponent - 1, -1000)


def _cut(x: Tensor, grid: Tensor) -> Tensor:
    return torch.trunc(x / grid) * grid


def tf32(left: Tensor, right: Tensor) -> Tensor:
    """Operands rounded to the 11 significand bits of TF32."""
    return round_to(left, TF32).float() @ round_to(right, TF32).float()


def tf32_cut(left: Tensor, right: Tensor) -> Tensor:
    """Operands cut to 11 significand bits, as a tensor core reads FP32 operands."""
    cut = (x.view(torch.int32).bitwise_and(-(2**13)).view(torch.float32) for x in (left, right))
    return next(cut) @ next(cut)


def bf16_parts(parts: int, order: int) -> Callable[[Tensor, Tensor], Tensor]:
    """FP32 operands as sums of ``parts`` bf16 numbers; the products of parts i + j <= ``order``.

    (1, 0) is one bf16 product, (2, 1) bf16x3, (3, 4) bf16x9: all nine, the smallest first.
    """

    def product(left: Tensor, right: Tensor) -> Tensor:
        a, b = _split(left, parts), _split(right, parts)
        total = torch.zeros(left.shape[0], right.shape[1])
        for together in reversed(range(order + 1)):
            for i in range(max(0, together - parts + 1), min(together, parts - 1) + 1):
                total += a[i] @ b[together - i]
        return total

    return product


def _split(x: Tensor, parts: int) -> list[Tensor]:
    pieces = []
    for _ in range(parts):
        pieces.append(x.bfloat16().float())
        x = x - pieces[-1]
    return pieces


def running_sum_in_16_bits(left: Tensor, right: Tensor) -> Tensor:
    """Every partial sum rounded to the operands' format."""
    total = torch.zeros(left.shape[0], right.shape[1], dtype=left.dtype)
    for a, b in zip(left.T, right, strict=True):
        total = (total.float() + torch.outer(a.float(), b.float())).to(left.dtype)
    return total


def parts_in_16_bits(left: Tensor, right: Tensor) -> Tensor:
    """Two parts of k, each rounded before they are added: a reduced-precision reduction."""
    first, second = (part.to(left.dtype) for part in _fp32_parts(left, right, 2))
    return (first.float() + second.float()).to(left.dtype)


def rounded_twice(left: Tensor, right: Tensor) -> Tensor:
    """Rounded to the other 16-bit format first."""
    other = torch.float16 if left.dtype == torch.bfloat16 else torch.bfloat16
    return (left.float() @ right.float()).to(other).to(left.dtype)


def flushed(x: Tensor) -> Tensor:
    """Subnormal numbers of ``x``'s format replaced by 0."""
    smallest = torch.finfo(x.dtype).smallest_normal
    return torch.where(x.abs() < smallest, torch.zeros_like(x), x)


#: Sound for 16-bit operands.
SOUND = {
    "whole": in_parts(1),
    "four_parts": in_parts(4),
    "ampere": tensor_core(8, 1),
    "hopper": tensor_core(16, 2),
}
#: Unsound for 16-bit operands.
UNSOUND_16_BITS = {
    "running_sum_in_16_bits": running_sum_in_16_bits,
    "parts_in_16_bits": parts_in_16_bits,
    "rounded_twice": rounded_twice,
    "fourteen_bits": tensor_core(16, -10),
}
#: Unsound for FP32 operands.
UNSOUND_FP32 = {
    "tf32": tf32,
    "tf32_cut": tf32_cut,
    "bf16x1": bf16_parts(1, 0),
    "bf16x3": bf16_parts(2, 1),
    "bf16x9": bf16_parts(3, 4),
}
