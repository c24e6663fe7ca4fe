"""Bounds of DAPO, GSPO and CISPO, and of their gradients.

The hazard. As in ``losses.py``: within the rounding of a ratio and of its limit nobody can say
which branch is right, and the gradient jumps between 0 and its full size. The bound says so there,
and only there. The ratio of GSPO carries the error of a mean.

``mask[b, t]`` is True for a real token; masked slots have bound 0 and never enter.
"""

import torch
from torch import Tensor

from precision_lib.arguments import Clipped, Dapo, taking
from precision_lib.bounds.aggregation import depth_of
from precision_lib.bounds.model import FP32, gamma, infinite_beyond, scatter, sum_depth
from precision_lib.bounds.ratios import exponential_error, log_ratios, mean_exponent
from precision_lib.formats import Format


class _Surrogate:
    """A A q of tokens or sequences [n], q = r between its limits, and which of them may count.

    For A >= 0 the limits are -inf and 1 + high, for A < 0 they are 1 - low and the dual clip or
    inf. r has a relative error; a limit 2u (1 + high), or u times the dual clip. Where r and a
    limit differ by more than both errors the branch is certain.

    Attributes:
        size: |A|. q: what enters. error: absolute error of q. by_ratio, by_limit: whether q may be
            r, whether it may be a limit.
    """

    def __init__(
        self,
        exponent: Tensor,
        exponent_error: Tensor,
        advantage: Tensor,
        x: Clipped[Tensor, Tensor],
        fmt: Format,
    ) -> None:
        low, high, dual = x.clip_low, x.clip_high, x.dual_clip if isinstance(x, Dapo) else None
        u, up = fmt.unit_roundoff, advantage >= 0
        self.ratio, self.size = exponent.exp(), advantage.abs()
        lower = torch.where(up, -torch.inf, 1.0 - low).double()
        upper = torch.where(up, 1.0 + high, torch.inf if dual is None else dual).double()
        self.q = torch.minimum(torch.maximum(self.ratio, lower), upper)
        of_limit = 2 * u * (1 + max(high, dual or 0.0))
        of_ratio = self.ratio * exponential_error(exponent_error, fmt)
        slack = torch.where(self.ratio.isinf(), 0, of_ratio + of_limit)
        near = (self.ratio >= lower - slack) & (self.ratio <= upper + slack)
        at_a_limit = (self.ratio <= lower + slack) | (self.ratio >= upper - slack)
        at_a_limit &= ~(self.ratio.isinf() & upper.isinf())
        used = self.size != 0
        self.by_ratio, self.by_limit = near & used, at_a_limit & used
        relative = exponential_error(exponent_error, fmt)
        error = torch.where(self.by_ratio, self.q * relative + fmt.smallest_normal, 0)
        self.error = error + torch.where(self.by_limit, of_limit, 0)
        self.relative = relative

    def terms(self, extra: float, fmt: Format) -> tuple[Tensor, Tensor]:
        """(|A| q, its error): two roundings of products, and a relative ``extra``."""
        error = self.error + (2 * fmt.unit_roundoff + extra) * (self.q + self.error)
        zero = torch.zeros_like(self.q)
        return tuple(torch.where(self.size == 0, zero, self.size * x) for x in (self.q, error))  # type: ignore[return-value]  # a pair

    def slope(self, weight: Tensor, roundings: float, fmt: Format) -> Tensor:
        """Bound for |A| r weight where r counts and 0 where it does not."""
        size = torch.where(self.size == 0, 0, self.size * self.ratio) * weight
        relative = self.relative + roundings * fmt.unit_roundoff
        rounding = size * relative + (1 + self.size) * fmt.smallest_normal
        rounding = infinite_beyond(size, rounding, fmt)
        bound = torch.where(self.by_ratio, rounding, torch.zeros_like(size))
        return torch.where(self.by_ratio & self.by_limit, size + rounding, bound)


def _mean_of(terms: Tensor, signs: Tensor, errors: Tensor, depth: int, fmt: Format) -> Tensor:
    """Bound for the mean of signed terms that carry errors; inf where the exact mean overflows."""
    n = max(terms.numel(), 1)
    of_sum = gamma(depth + 2, fmt) * (terms + errors).sum() / n + fmt.smallest_subnormal
    return infinite_beyond((signs * terms).sum() / n, errors.sum() / n + of_sum, fmt)


def _tokens(x: Clipped[Tensor, Tensor], fmt: Format) -> _Surrogate:
    d = log_ratios(x.logprobs, x.old_logprobs, x.mask)[x.mask]
    return _Surrogate(d, fmt.unit_roundoff * d.abs(), x.advantages[x.mask].double(), x, fmt)


@taking(Dapo)
def dapo_loss_bound(x: Dapo[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for the mean over real tokens of -q A: as :func:`policy_loss_bound`, three limits.

    Returns:
        Scalar, float64; inf where the exact loss overflows, 0 for an empty mask.
    """
    token = _tokens(x, fmt)
    terms, errors = token.terms(0.0, fmt)
    return _mean_of(terms, -x.advantages[x.mask].double().sign(), errors, depth_of(x.mask), fmt)


@taking(Dapo)
def dapo_loss_gradient_bound(x: Dapo[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for -A r / n where q is r, and 0 where it is not: r's error and 6u.

    Returns:
        [B, T] float64; inf where the exact gradient overflows.
    """
    token = _tokens(x, fmt)
    weight = torch.tensor(1 / max(int(x.mask.sum()), 1), dtype=torch.float64)
    return scatter(token.slope(weight, 6, fmt), x.mask)


def _sequences(x: Clipped[Tensor, Tensor], fmt: Format) -> _Surrogate:
    present = x.mask.any(-1)
    mean, error = mean_exponent(x.logprobs, x.old_logprobs, x.mask, fmt)
    return _Surrogate(mean[present], error[present], x.advantages[present].double(), x, fmt)


@taking(Clipped)
def gspo_loss_bound(x: Clipped[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for the mean over sequences of -q A, q from s = exp(mean d).

    s carries the error of the mean and 8u. A loss that is written per token takes the mean of n_b
    equal terms: gamma_(depth(T) + 4) on top.

    Returns:
        Scalar, float64; inf where the exact loss overflows, 0 for an empty mask.
    """
    sequence = _sequences(x, fmt)
    terms, errors = sequence.terms(gamma(sum_depth(x.mask.shape[-1]) + 4, fmt), fmt)
    signs = -x.advantages[x.mask.any(-1)].double().sign()
    return _mean_of(terms, signs, errors, sum_depth(len(x.mask)), fmt)


@taking(Clipped)
def gspo_loss_gradient_bound(x: Clipped[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for -A s / (N n_b) where q is s, and 0 where it is not.

    The error of s and 8u of products and quotients. By autograd the sum over the tokens of a
    sequence comes back and is divided by n_b: gamma_(depth(T) + 2) on top.

    Returns:
        [B, T] float64; inf where the exact gradient overflows.
    """
    sequence = _sequences(x, fmt)
    lengths, present = x.mask.sum(-1), x.mask.any(-1)
    weight = 1 / (lengths[present].double() * max(int(present.sum()), 1))
    bound = torch.zeros(len(x.mask), dtype=torch.float64)
    bound[present] = sequence.slope(weight, 10 + sum_depth(x.mask.shape[-1]), fmt)
    return torch.where(x.mask, bound.unsqueeze(-1), 0)


@taking(Clipped)
def cispo_loss_bound(x: Clipped[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for the mean over real tokens of -w A logprobs: the error of w, three products.

    Returns:
        Scalar, float64; inf where the exact loss overflows, 0 for an empty mask.
    """
    weight, error = _cispo_weight(x, fmt)
    factor = x.advantages[x.mask].double() * x.logprobs[x.mask].double()
    terms = weight * factor.abs()
    errors = factor.abs() * error + 3 * fmt.unit_roundoff * terms + fmt.smallest_normal
    return _mean_of(terms, -factor.sign(), errors, depth_of(x.mask), fmt)


@taking(Clipped)
def cispo_loss_gradient_bound(x: Clipped[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for -w A / n at every real token: the error of w, products and a quotient, 5u.

    Returns:
        [B, T] float64; inf where the exact gradient overflows.
    """
    weight, error = _cispo_weight(x, fmt)
    size = x.advantages[x.mask].double().abs() / max(int(x.mask.sum()), 1)
    bound = size * (error + 5 * fmt.unit_roundoff * weight) + fmt.smallest_normal
    return scatter(infinite_beyond(size * weight, bound, fmt), x.mask)


def _cispo_weight(x: Clipped[Tensor, Tensor], fmt: Format) -> tuple[Tensor, Tensor]:
    """(w, its error): clipping moves no more than the more moved of ratio and limit."""
    d = log_ratios(x.logprobs, x.old_logprobs, x.mask)[x.mask]
    weight = d.exp().clamp(1 - x.clip_low, 1 + x.clip_high)
    relative = exponential_error(fmt.unit_roundoff * d.abs(), fmt)
    of_limit = 2 * fmt.unit_roundoff * (1 + x.clip_high)
    inside = torch.where(d.exp().isinf(), 0, relative * weight) + fmt.smallest_normal
    return weight, inside + of_limit
