"""Bounds of the clipped policy and value losses, and of their gradients.

The hazard. A clip is a decision on a rounded number: within the rounding of the ratio and of
1 +- c nobody can say which branch is right, and the gradient jumps between 0 and its full size.
The bound says so there, and only there.

Notation: r = exp(d), d = logprobs - old_logprobs; n real tokens; ``mask[b, t]`` is True for a real
token; masked slots have bound 0 and never enter. All arrays [B, T].
"""

import torch
from torch import Tensor

from precision_lib.arguments import PolicyLoss, ValueLoss, taking
from precision_lib.bounds.model import (
    FP32,
    FUNCTION_ERROR,
    gammas,
    infinite_beyond,
    mean_bound,
    scatter,
)
from precision_lib.formats import Format

#: |d| beyond which the ratio is 0 or inf in FP32 whatever the rounding of d does to it.
_CERTAIN = 200.0


def _mean_of_terms(terms: Tensor, errors: Tensor, mask: Tensor, fmt: Format) -> Tensor:
    """Bound for the mean of terms that carry errors; inf where the exact mean overflows."""
    n = max(terms.numel(), 1)
    of_sum = mean_bound(float((terms.abs() + errors).sum()), terms.numel(), fmt, mask.numel())
    return infinite_beyond(terms.sum() / n, errors.sum() / n + of_sum, fmt)


class _Surrogate:
    """A token's A q, q = min(r, 1+c) for A >= 0 and max(r, 1-c) for A < 0, of real tokens [n].

    r carries |d| u of the rounding of d, as much of an argument that is scaled by log2 e for exp2,
    and 8u of exp, the limit 2u (1 + c): its own rounding and
    that of c. Where they differ by more than both errors the branch is certain.

    Attributes:
        advantage, ratio: A and r. q: what enters.
        ratio_error: relative error of r. limit_error: absolute error of 1 +- c.
        by_ratio, by_limit: True where q may be r, where it may be the limit. A = 0: neither.
    """

    def __init__(self, x: PolicyLoss[Tensor, Tensor], fmt: Format) -> None:
        given, clip_range = (x.logprobs, x.old_logprobs, x.advantages), x.clip_range
        new, old, self.advantage = (tensor[x.mask].double() for tensor in given)
        d, up = new - old, self.advantage >= 0
        self.ratio = torch.exp(d)
        limit = 1 + clip_range * torch.where(up, 1.0, -1.0).double()
        self.q = torch.where(up, torch.minimum(self.ratio, limit), torch.maximum(self.ratio, limit))
        self.ratio_error = gammas(2 * d.abs().clamp(max=_CERTAIN) + FUNCTION_ERROR, fmt)
        self.limit_error = 2 * fmt.unit_roundoff * (1 + clip_range)
        gap = torch.where(up, limit - self.ratio, self.ratio - limit)  # >= 0 where r counts
        slack = torch.where(
            self.ratio.isinf(), 0.0, self.ratio * self.ratio_error + self.limit_error
        )
        self.by_ratio = (gap >= -slack) & (self.advantage != 0)
        self.by_limit = (gap <= slack) & (self.advantage != 0)


@taking(PolicyLoss)
def policy_loss_bound(x: PolicyLoss[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for the mean of -min(r A, clip(r, 1-c, 1+c) A).

    A token's surrogate is |A| q, where q is r or its limit, and moves with the one that counts,
    with the more moved of both where that is uncertain. The product rounds once, twice with a
    second factor. The mean follows :func:`mean_bound`.

    Returns:
        Scalar, float64; inf where the exact loss overflows, 0 for an empty mask.
    """
    token = _Surrogate(x, fmt)
    nothing, u = torch.zeros_like(token.q), fmt.unit_roundoff
    of_ratio = token.q * token.ratio_error + fmt.smallest_normal
    error = torch.where(token.by_ratio, of_ratio, nothing)
    error = error + torch.where(token.by_limit, token.limit_error, nothing)
    error = error + 2 * u * (token.q + error)
    size = token.advantage.abs()
    terms, errors = (torch.where(size == 0, nothing, size * y) for y in (token.q, error))
    return _mean_of_terms(-token.advantage.sign() * terms, errors, x.mask, fmt)


@taking(PolicyLoss)
def policy_loss_gradient_bound(x: PolicyLoss[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for -A r / n where the unclipped branch counts, and 0 where it does not.

    r carries 2 |d| u + 8u, products with A and 1/n at most 5u. Where the branch is uncertain, |r -
    limit| being within the errors of both, the bound is the whole |A| r / n with its rounding.

    Returns:
        [B, T] float64; inf where the exact gradient overflows.
    """
    token = _Surrogate(x, fmt)
    magnitude = token.advantage.abs()
    size = magnitude * token.ratio / max(magnitude.numel(), 1)
    relative = token.ratio_error + 6 * fmt.unit_roundoff
    rounding = size * relative + (1 + magnitude) * fmt.smallest_normal
    rounding = infinite_beyond(size, rounding, fmt)
    bound = torch.where(token.by_ratio, rounding, torch.zeros_like(size))
    return scatter(torch.where(token.by_ratio & token.by_limit, size + rounding, bound), x.mask)


def _real(x: ValueLoss[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Values, old values and returns of the real tokens, float64 [n]."""
    return tuple(tensor[x.mask].double() for tensor in (x.values, x.old_values, x.returns))


def _value_errors(
    x: ValueLoss[Tensor, Tensor], fmt: Format
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(e1^2 / 2, its bound, e2^2 / 2, its bound) of real tokens [n].

    e1 = v - R carries u |e1|, its half square 4u in all. The clipped value w is clip(v, old -+ c)
    or old + clip(v - old, -+c): roundings of c, of v - old and of the sum, at most
    3u min(|v - old|, c) + u |w|. It enters e2 = w - R, which rounds once more.
    """
    u, clip_range = fmt.unit_roundoff, x.clip_range
    value, old, target = _real(x)
    step = (value - old).clamp(-clip_range, clip_range)
    clipped = torch.minimum(torch.maximum(value, old - clip_range), old + clip_range)
    first, second = (value - target).abs(), (clipped - target).abs()
    shift = 3 * u * step.abs() + u * clipped.abs()
    shift = shift + u * (second + shift)
    first_error = 2 * u * first.square()
    second_error = second * shift + shift.square() / 2 + 2 * u * (second + shift).square()
    tiny = fmt.smallest_normal
    return first.square() / 2, first_error + tiny, second.square() / 2, second_error + tiny


@taking(ValueLoss)
def value_loss_bound(x: ValueLoss[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for the mean of 0.5 max((v - R)^2, (clip(v, old - c, old + c) - R)^2).

    A maximum moves no more than the more moved of its arguments. The mean follows
    :func:`mean_bound`.

    Returns:
        Scalar, float64; inf where the exact loss overflows, 0 for an empty mask.
    """
    first, first_error, second, second_error = _value_errors(x, fmt)
    terms, errors = torch.maximum(first, second), torch.maximum(first_error, second_error)
    return _mean_of_terms(terms, errors, x.mask, fmt)


@taking(ValueLoss)
def value_loss_gradient_bound(x: ValueLoss[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for (v - R) / n where v counts, and 0 where its clipped value does.

    A difference, a division and two products: 5u. Outside the clip range, or within the rounding
    of its border, the two squared errors are compared; where they differ by less than their own
    errors the bound is the whole |v - R| / n with its rounding. Where the maximum may pick a
    clipped value that is v but for rounding, w = old + clip(v - old), the gradient is (w - R) / n:
    the shift of w, 3u |v - old| + u |w|, and the rounding of w - R come on top.

    Returns:
        [B, T] float64; inf where the exact gradient overflows.
    """
    u, (value, old, target) = fmt.unit_roundoff, _real(x)
    first, first_error, second, second_error = _value_errors(x, fmt)
    margin = x.clip_range - (value - old).abs()  # negative outside the clip range
    border = 4 * u * (old.abs() + (value - old).abs())
    close = (first - second).abs() <= first_error + second_error
    undecided = (margin <= border) & close
    active = (margin >= 0) | (first > second)
    size = (value - target).abs() / max(value.numel(), 1)
    shift = u * (3 * (value - old).abs() + value.abs()) * (1 + 4 * u) / max(value.numel(), 1)
    rounding = 5 * u * size + fmt.smallest_normal + torch.where(close, shift, 0)
    rounding = infinite_beyond(size, rounding, fmt)
    bound = torch.where(active, rounding, torch.zeros_like(size))
    return scatter(torch.where(undecided, size + rounding, bound), x.mask)
