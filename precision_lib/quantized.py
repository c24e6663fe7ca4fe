"""Scaled FP8 and INT8 products, as rollout engines compute them, by one rule on every device.

The hazard. "FP8" names a storage format. What an engine computes also depends on which numbers
share a scale, in which format the sum is kept, and what becomes of a block that holds only zeros.
So the rule is written out here, and each step is a function with exact values to test it on.

========  ===================  =============================  ==============================
format    a code is            weights share a scale          activations share a scale
========  ===================  =============================  ==============================
``fp8``   E4M3, 448 at most    per block of 128 x 128         per token and 128 channels
``int8``  -127 ... 127         per output channel             per token
========  ===================  =============================  ==============================

scale = largest magnitude / largest code, in FP32; 1 where that is 0. code = value / scale, rounded
to nearest even; what rounding of the scale puts beyond the largest code becomes the largest code.
A code times its scale is rounded to FP32 once; products and sums are FP32; the result, with the
bias, is rounded to bf16 once. An infinite or NaN value makes its block NaN.

O output channels, I input channels, n tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Rows and columns of a block of FP8 weights, and channels of a group of FP8 activations.
BLOCK = 128
RESULT = torch.bfloat16


@dataclass(frozen=True)
class Scaled:
    """How the numbers of one operand share scales.

    Attributes:
        largest: the largest code.
        rows, columns: of a block that has one scale; 0 for all of them.
    """

    largest: float
    rows: int
    columns: int


_FP8, _INT8 = 448.0, 127.0
WEIGHTS = {"fp8": Scaled(_FP8, BLOCK, BLOCK), "int8": Scaled(_INT8, 1, 0)}
ACTIVATIONS = {"fp8": Scaled(_FP8, 1, BLOCK), "int8": Scaled(_INT8, 1, 0)}


def scales(x: Tensor, how: Scaled) -> Tensor:
    """[R, C] FP32 scales of the blocks of ``x`` [r, c]: magnitude / largest code, 1 for zeros.

    The last block of a row or column may be smaller. A magnitude whose scale FP32 has only as a
    subnormal gets the smallest normal number.
    """
    rows, columns = how.rows or x.shape[0], how.columns or x.shape[1]
    padding = (0, -x.shape[1] % columns, 0, -x.shape[0] % rows)
    padded = torch.nn.functional.pad(x.to(torch.float32).abs(), padding)
    blocks = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    largest = blocks.amax((1, 3))
    smallest = torch.finfo(torch.float32).tiny
    scale = (largest / how.largest).clamp(min=smallest)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def spread(scale: Tensor, shape: torch.Size, how: Scaled) -> Tensor:
    """Scales [R, C] as [r, c], one for each number."""
    rows, columns = how.rows or shape[0], how.columns or shape[1]
    wide = scale.repeat_interleave(rows, 0) if rows > 1 else scale
    if columns > 1:
        wide = wide.repeat_interleave(columns, 1)
    return wide[: shape[0], : shape[1]]


def codes(x: Tensor, scale: Tensor, how: Scaled) -> Tensor:
    """[r, c] FP32: ``x`` over its scales [r, c], rounded to the nearest code and saturated."""
    within = (x.to(torch.float32) / scale).clamp(-how.largest, how.largest)
    if how.largest == _FP8:
        return within.to(torch.float8_e4m3fn).to(torch.float32)
    return within.round()


def quantized(x: Tensor, how: Scaled) -> Tensor:
    """[r, c] FP32: what is left of ``x`` [r, c] after rounding to codes; code times scale."""
    scale = spread(scales(x, how), x.shape, how)
    return codes(x, scale, how) * scale


def scaled_linear(x: Tensor, weight: Tensor, bias: Tensor | None, fmt: str) -> Tensor:
    """y = x . W^T (+ b) of quantised activations and weights that were quantised before.

    Args:
        x: [..., I] activations in any floating-point format.
        weight: [O, I] FP32 from :func:`quantized` with :data:`WEIGHTS`. bias: [O] FP32, or None.
        fmt: ``fp8`` or ``int8``.

    Returns:
        [..., O] in bf16.
    """
    rows = quantized(x.reshape(-1, x.shape[-1]), ACTIVATIONS[fmt])
    wide = torch.nn.functional.linear(rows, weight, bias)
    return wide.to(RESULT).view(*x.shape[:-1], len(weight))


class ScaledLinear(torch.nn.Module):
    """A linear layer of a rollout engine: FP32 weights and bias in, quantised once."""

    def __init__(self, linear: torch.nn.Linear, fmt: str) -> None:
        super().__init__()
        self.fmt = fmt
        self.register_buffer("quantised", quantized(linear.weight.data, WEIGHTS[fmt]))
        bias = None if linear.bias is None else linear.bias.data.to(torch.float32)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.quantised
        bias: Any = self.bias
        return scaled_linear(x, weight, bias, self.fmt)
