"""One tensor in other memory: the same values behind other strides.

The hazard. A kernel that reads from the first address on takes a slice of a padded buffer for other
numbers. What surrounds the values here is NaN, so that whoever reads it shows it.
"""

import torch
from torch import Tensor

from precision_lib.conformance.sameness import equal_bits


def transposed(x: Tensor) -> Tensor:
    """[B, T, ...] stored as [T, B, ...], as a model with the sequence first makes it."""
    return x.clone() if x.dim() < 2 else x.transpose(0, 1).contiguous().transpose(0, 1)


def last_dimension_first(x: Tensor) -> Tensor:
    """[..., V] stored as [V, ...], as a product with a transposed weight makes it."""
    return x.clone() if x.dim() < 2 else x.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(x: Tensor) -> Tensor:
    """Cut out of a buffer that is longer on every side and holds NaN there, ones of a mask."""
    if not x.dim():
        return x.clone()
    filler = torch.nan if x.is_floating_point() else 1
    buffer = torch.full([size + 3 for size in x.shape], filler, dtype=x.dtype, device=x.device)
    view = buffer[tuple(slice(1, size + 1) for size in x.shape)]
    view.copy_(x)
    return view


def every_other(x: Tensor) -> Tensor:
    """Every other element of a buffer: the last dimension has stride 2."""
    if not x.dim():
        return x.clone()
    buffer = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    buffer.fill_(torch.nan if x.is_floating_point() else 1)
    buffer[..., ::2] = x
    return buffer[..., ::2]


def stride_0(x: Tensor) -> Tensor:
    """Equal rows that share their memory; other tensors as they are."""
    shared = x[:1].clone().expand(x.shape)
    return shared if equal_bits(x, shared) else x.clone()
