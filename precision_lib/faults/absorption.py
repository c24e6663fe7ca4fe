"""Faults of the optimizer's step on stored weights: each still trains, and learns less."""

import torch
from torch import Tensor


def step_truncated(stored: Tensor, step: Tensor) -> Tensor:
    """The sum is cut to the format, towards 0, instead of being rounded to nearest."""
    wide = stored.float() + step
    rounded = wide.to(stored.dtype)
    lower = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.float().abs() > wide.abs(), lower, rounded)


def step_on_the_copy(stored: Tensor, step: Tensor) -> Tensor:
    """The step is added to the bf16 copy of the weights, whatever they are stored in."""
    return (stored.to(torch.bfloat16).float() + step).to(stored.dtype)
