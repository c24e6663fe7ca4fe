"""Bound of a matrix product: products and sums in FP32, one rounding of the result.

The hazard. The bound grows with the inner dimension k times sum |a||b|, the result of random signs
with sqrt(k) alone. From k of about 1,000 on, TF32 stays within it on normal inputs. So the bound
certifies a sound product; ``forensics/device.py`` shows a wrong one with inputs whose FP32 sums are
exact.
"""

import torch
from torch import Tensor

from precision_lib.bounds.model import FP32, gamma, infinite_beyond, rounding_bound
from precision_lib.formats import Format

#: Roundings that a cut of the lower bits counts for: it costs up to an ulp, a rounding half of one.
_CUT = 2


def product_bound(left: Tensor, right: Tensor, fmt: Format) -> Tensor:
    """Bound of |computed - exact| for ``left @ right``, sums in any order and in any parts.

    FP32: a term passes at most k roundings, its product and k - 1 additions: gamma_k sum |a||b|.

    16 bits: products are exact in FP32. A tensor core adds a block of them to the accumulator. It
    aligns all to the largest one, cuts off what is below the bits that it has, and cuts the sum to
    24 bits. From Ampere on a block has 8 terms or more and the alignment one bit more than FP32.
    Of 9 addends 8 lose up to u each and the sum loses 2u: 1.25 u per term, less than the 2u of
    twice the CPU's bound, gamma_2k. Volta's blocks of 4 without that bit may lose 2.5 u
    (Fasi, Higham, Mikaitis and Pranesh, PeerJ CS 7:e330, 2021; Khattak and Mikaitis,
    arXiv:2512.07004, 2025). The result is then rounded once, at most half an ulp of ``fmt``.

    Args:
        left: [m, k]. right: [k, n]; both hold values of ``fmt``.
        fmt: fp32, bf16 or fp16.

    Returns:
        [m, n] float64; inf where the exact result overflows ``fmt``.

    Raises:
        ValueError: for another format, or for a k without a bound (from 2^23 on in 16 bits).
    """
    if fmt.name not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"no bound for a product in {fmt.name}; use fp32, bf16 or fp16")
    inner, wide = left.shape[-1], fmt.name == "fp32"
    exact = left.double() @ right.double()
    sizes = left.double().abs() @ right.double().abs()
    steps = inner if wide else _CUT * inner
    sums = gamma(steps, FP32) * sizes + steps * FP32.smallest_subnormal
    rounding = torch.zeros_like(sums) if wide else rounding_bound(exact.abs() + sums, fmt)
    return infinite_beyond(exact, sums + rounding, fmt)
