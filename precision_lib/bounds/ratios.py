"""Bounds of sequence ratios and of importance weights.

The hazard. exp turns the absolute error of its argument into a relative one: a sum of 1,000
log-ratios that cancel is wrong by gamma_depth of their magnitudes, and so is the weight.

d = new - old; ``mask[b, t]`` is True for a real token; masked slots have bound 0 and never enter.
"""

import math

import torch
from torch import Tensor

from precision_lib.arguments import SequenceRatio, Weights, taking
from precision_lib.bounds.model import (
    FP32,
    FUNCTION_ERROR,
    gamma,
    gammas,
    infinite_beyond,
    sum_depth,
)
from precision_lib.formats import Format

#: An absolute error of an exponent beyond which nothing is said.
_WORST = 0.5


def log_ratios(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """d in float64, 0 in masked slots."""
    return torch.where(mask, new.double(), 0) - torch.where(mask, old.double(), 0)


def exponential_error(exponent_error: Tensor, fmt: Format) -> Tensor:
    """Relative error of exp of an argument with this absolute error: e + 8u as chained roundings.

    inf from an error of 0.5 on.
    """
    chained = gammas(exponent_error / fmt.unit_roundoff + FUNCTION_ERROR, fmt)
    return torch.where(exponent_error < _WORST, chained, torch.inf)


def mean_exponent(new: Tensor, old: Tensor, mask: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """(mean d of every sequence, its error): gamma_(depth + 3) mean |d|, [B] float64.

    Each d rounds once; then the sum, and a division or a rounded 1 / n with a product.
    """
    d, lengths = log_ratios(new, old, mask), mask.sum(-1).clamp(min=1)
    relative = gamma(sum_depth(mask.shape[-1]) + 3, fmt)
    return d.sum(-1) / lengths, relative * d.abs().sum(-1) / lengths


@taking(SequenceRatio)
def sequence_ratio_bound(x: SequenceRatio[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for s = exp(mean d): s times the error of the mean and 8u of exp.

    Returns:
        [B] float64; inf where the exact ratio overflows.
    """
    mean, error = mean_exponent(x.logprobs, x.old_logprobs, x.mask, fmt)
    ratio = mean.exp()
    return infinite_beyond(ratio, ratio * exponential_error(error, fmt) + fmt.smallest_normal, fmt)


@taking(SequenceRatio)
def sequence_ratio_gradient_bound(
    x: SequenceRatio[Tensor, Tensor], upstream: Tensor, fmt: Format = FP32
) -> Tensor:
    """Bound for upstream_b s_b / n_b at real tokens: the error of s, products and quotients, 4u.

    Returns:
        [B, T] float64; 0 at masked slots.
    """
    mean, error = mean_exponent(x.logprobs, x.old_logprobs, x.mask, fmt)
    size = upstream.double().abs() * mean.exp() / x.mask.sum(-1).clamp(min=1)
    relative = exponential_error(error, fmt) + 4 * fmt.unit_roundoff
    bound = infinite_beyond(size, size * relative + fmt.smallest_normal, fmt)
    return torch.where(x.mask, bound.unsqueeze(-1), 0)


@taking(Weights)
def importance_weights_bound(x: Weights[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for w = exp(d), exp(sum d) or exp(mean d), capped or zeroed above the cap.

    The exponent is wrong by u |d|, by gamma_(depth + 1) sum |d| or as in :func:`mean_exponent`;
    w by that relatively, and 8u. The cap is rounded once, or is exp of a rounded logarithm:
    (9 + |log cap|) u. Where w is within both errors of the cap, ``truncate`` may return either,
    and ``mask`` either w or 0, so that the bound is w and its error there.

    Returns:
        [B, T] float64; 0 in masked slots and where ``mask`` certainly gives 0.
    """
    d = log_ratios(x.train_logprobs, x.rollout_logprobs, x.mask)
    if x.level == "token":
        exponent, error = d, fmt.unit_roundoff * d.abs()
    elif x.level == "sequence":
        relative = gamma(sum_depth(x.mask.shape[-1]) + 1, fmt)
        exponent, error = d.sum(-1, keepdim=True), relative * d.abs().sum(-1, keepdim=True)
    else:
        both = mean_exponent(x.train_logprobs, x.rollout_logprobs, x.mask, fmt)
        exponent, error = (y.unsqueeze(-1) for y in both)
    weight, relative_error = exponent.exp(), exponential_error(error, fmt)
    of_weight = torch.where(weight.isinf(), 0, weight * relative_error) + fmt.smallest_normal
    of_cap = (FUNCTION_ERROR + 1 + abs(math.log(x.cap))) * fmt.unit_roundoff * x.cap
    above = weight - of_weight > x.cap + of_cap
    unclear = ~above & (weight + of_weight > x.cap - of_cap)
    if x.mode == "truncate":
        bound = torch.where(above, of_cap, of_weight + torch.where(unclear, of_cap, 0))
    else:
        bound = torch.where(above, 0, of_weight + torch.where(unclear, weight, 0))
    return torch.where(x.mask, bound, 0)
