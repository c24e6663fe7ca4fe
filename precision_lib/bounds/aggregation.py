"""Bounds of means over tokens or sequences with a denominator that may be given.

``mask[b, t]`` is True for a real token; masked slots have bound 0 and never enter.
"""

import torch
from torch import Tensor

from precision_lib.arguments import Aggregate, taking
from precision_lib.bounds.model import FP32, gamma, infinite_beyond, sum_depth
from precision_lib.formats import Format


def depth_of(mask: Tensor) -> int:
    """Roundings of a term in a sum over the real tokens of [B, T]: all at once or row by row."""
    rows, width = mask.shape
    at_once = sum_depth(int(mask.sum()), mask.numel())
    return max(at_once, sum_depth(width) + sum_depth(rows))


def _weights(x: Aggregate[Tensor, Tensor]) -> Tensor:
    """What every token's loss is multiplied by, [B, T] float64."""
    lengths = x.mask.sum(-1)
    count = lengths.sum() if x.mode == "token_mean" else (lengths > 0).sum()
    total = count.clamp(min=1).double() if x.denominator is None else x.denominator
    each = lengths.clamp(min=1) if x.mode == "sequence_mean" else torch.ones_like(lengths)
    return (1 / (each.double() * total)).unsqueeze(-1) * x.mask


@taking(Aggregate)
def aggregate_bound(x: Aggregate[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for sum_bt w_bt x_bt, w = 1 / D, or 1 / (n_b D) for ``sequence_mean``.

    A term passes the sum and, for each of n_b and D, a division or a rounded reciprocal and a
    product: gamma_(depth + 4) sum w |x|, and a subnormal for a term that is divided below the
    normal range.

    Args:
        values, mask: [B, T].

    Returns:
        Scalar, float64; inf where the exact result overflows.
    """
    weights = _weights(x)
    terms = weights * torch.where(x.mask, x.values.double(), 0)
    rounded = gamma(depth_of(x.mask) + 4, fmt) * terms.abs().sum()
    lost = fmt.smallest_subnormal * (1 + x.mask.sum())
    return infinite_beyond(terms.sum(), rounded + lost, fmt)


@taking(Aggregate)
def aggregate_gradient_bound(x: Aggregate[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for w = 1 / D, or 1 / (n_b D): two reciprocals, their product, one more: 5u w.

    Returns:
        [B, T] float64; 0 at masked slots.
    """
    weights = _weights(x)
    return 5 * fmt.unit_roundoff * weights + fmt.smallest_subnormal * x.mask
