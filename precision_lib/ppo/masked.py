"""Reductions over real tokens.

The hazards. ``(x * mask).sum()`` turns a NaN in a padded slot into a NaN of the loss. A running
sum in bf16 stalls: 256 + 0.7 is 256. An empty mask divides 0 by 0.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` over the slots where ``mask`` is True, in FP32 or better.

    Args:
        x: any shape and floating-point format; masked slots may hold NaN or inf.
        mask: same shape, bool; True for a real token.

    Returns:
        Scalar, float64 for float64 input and float32 otherwise; 0 for an empty mask.

    Raises:
        ValueError: when the shapes differ or the mask is not bool.
    """
    if x.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected a bool mask of shape {tuple(x.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept = torch.where(mask, x, torch.zeros_like(x)).to(dtype)
    return kept.sum() / mask.sum().clamp(min=1)
