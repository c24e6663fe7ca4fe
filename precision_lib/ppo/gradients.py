"""Values with a gradient that is known in closed form.

The hazard. Autograd differentiates the formula as it is written: behind a clip, ``exp`` of a large
log-ratio gives 0 * inf = NaN, and a NaN in a masked slot reaches the gradient through a product
with 0. Here the derivative is computed beside the value, without its dangerous branches, and a
slot whose upstream gradient is 0 gets exactly 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_slope(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """``value`` as a differentiable function of ``x`` with derivative ``slope``.

    Args:
        x: what the gradient flows to. slope: shape of ``x``, any floating-point format; the
            gradient is converted to the format of ``x`` by torch (float64 to 16 bits by way of
            FP32).
        value: shape of ``x`` (slope is dvalue_i / dx_i), a scalar (dvalue / dx_i), or one number
            for each row of ``x`` (dvalue_b / dx_bt).
    """
    return _WithSlope.apply(x, value, slope)  # type: ignore[no-any-return]  # apply is untyped


class _WithSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.format = x.dtype
        return value.clone() if value is x else value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        if 0 < upstream.dim() < slope.dim():
            upstream = upstream.unsqueeze(-1)
        gradient = (slope * upstream).to(ctx.format)
        if upstream.dim():
            gradient = gradient.masked_fill_(upstream == 0, 0)
        return gradient, None, None
