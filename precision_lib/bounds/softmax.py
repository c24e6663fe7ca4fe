"""Bounds of log-softmax and entropy, and of their gradients.

Notation: d_v = z_v - max z, s = sum_v exp(d_v), p_v = exp(d_v) / s, l_v = d_v - log s = log p_v,
E[.] the mean under p, H the entropy, g = gamma of the blocked sum's depth. V vocabulary entries; a
-inf logit is a zero probability: it contributes nothing, and its own results are exact.
"""

import torch
from torch import Tensor

from precision_lib.bounds.model import (
    FP32,
    FUNCTION_ERROR,
    gamma,
    infinite_beyond,
    sum_depth,
)
from precision_lib.formats import Format


def _finite(x: Tensor) -> Tensor:
    """Infinities replaced by 0, for terms that a zero probability removes."""
    return torch.where(torch.isfinite(x), x, torch.zeros_like(x))


def log_softmax_bound(logits: Tensor, logprobs: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound of |computed - exact| for a log-softmax evaluated with FP32-style max subtraction.

    Each d_v carries u |d_v|, and as much when a kernel scales it by log2 e for exp2, so exp(d_v)
    carries a relative 2 |d_v| u + 8u; the sum of V terms adds g. Hence log s has an absolute error
    of at most 2 E[|d|] u + 8u + g, plus 8u |log s| of the
    logarithm and 8u for a logarithm that is only absolutely accurate near 1.
    The two subtractions of l = (z_t - max z) - log s add u |d_t| + u |l|.

    Args:
        logits: [..., V] exact inputs. logprobs: [...] exact results. fmt: the arithmetic's format.

    Returns:
        [...] float64 bound in nats; 0 where the exact result is -inf (it must be met), inf where
        it overflows ``fmt``.
    """
    z, exact = logits.double(), logprobs.double()
    depth = (z - z.max(-1, keepdim=True).values).clamp(min=-1e4)  # exp(-1e4) is 0 in every format
    mean_depth = (torch.softmax(z, -1) * -depth).sum(-1)
    log_sum = torch.logsumexp(depth, -1)
    size = _finite(exact).abs()
    u = fmt.unit_roundoff
    relative = (2 * mean_depth + 2 * FUNCTION_ERROR + log_sum * FUNCTION_ERROR) * u
    bound = relative + gamma(sum_depth(logits.shape[-1]), fmt) + u * (2 * size + log_sum)
    bound = infinite_beyond(size, bound, fmt)
    return torch.where(exact == -torch.inf, torch.zeros_like(bound), bound)


def _all_entries(logits: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """(p, l with 0 for -inf, bound of every l), all [..., V]."""
    z = logits.double()
    logprobs = torch.log_softmax(z, -1)
    mean = log_softmax_bound(z, torch.zeros_like(logprobs[..., 0]), fmt)  # without the u |l| part
    size = _finite(logprobs)
    each = mean.unsqueeze(-1) + 2 * fmt.unit_roundoff * size.abs()
    return logprobs.exp(), size, torch.where(torch.isfinite(logprobs), each, torch.zeros_like(each))


def _flushed(probability: Tensor, fmt: Format) -> Tensor:
    """A probability below the normal range may come out as 0: an absolute error, 0 for p = 0."""
    tiny = torch.full_like(probability, fmt.smallest_normal)
    return torch.where(probability > 0, tiny, torch.zeros_like(tiny))


def _with_upstream(
    bound: Tensor, exact: Tensor, logits: Tensor, upstream: Tensor, fmt: Format
) -> Tensor:
    """|upstream| times ``bound``, and what differentiating through max z adds to its entries.

    The gradient through max z is minus the sum of all others: 0 exactly, and in rounded arithmetic
    the sum of their errors and of its own rounding.
    """
    z, up = logits.double(), upstream.double().abs().unsqueeze(-1)
    of_sum = gamma(sum_depth(z.shape[-1]) + 2, fmt) * exact.abs().sum(-1, keepdim=True)
    residue = bound.sum(-1, keepdim=True) + of_sum
    total = bound + torch.where(z == z.max(-1, keepdim=True).values, residue, 0.0)
    return up * total + torch.where(total > 0, fmt.smallest_subnormal, 0.0)


def log_softmax_gradient_bound(
    logits: Tensor, tokens: Tensor, upstream: Tensor, fmt: Format = FP32
) -> Tensor:
    """Bound for upstream * (onehot - softmax), the gradient of chosen log-probs.

    p_v is exp of a computed l_v, error b_v of :func:`log_softmax_bound`, or a quotient whose error
    is smaller: relative b_v + 8u, and |l_v| u of an argument that is scaled for exp2. Product and
    subtraction add 2u |.| each. The entry of the largest logit may carry the residue of
    differentiating through max z.

    Args:
        logits: [..., V]. tokens, upstream: [...].

    Returns:
        [..., V] float64; 0 at a zero probability that was not chosen.
    """
    u = fmt.unit_roundoff
    p, size, each = _all_entries(logits, fmt)
    onehot = torch.zeros_like(p).scatter_(-1, tokens.unsqueeze(-1), 1.0)
    exact = onehot - p
    of_power = each + (FUNCTION_ERROR + 2 + size.abs()) * u
    bound = p * of_power + 2 * u * exact.abs() + _flushed(p, fmt)
    return _with_upstream(bound, exact, logits, upstream, fmt)


def _entropy_and_bound(logits: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    u = fmt.unit_roundoff
    p, size, each = _all_entries(logits, fmt)
    entropy = -(p * size).sum(-1)
    relative = each + (FUNCTION_ERROR + 2 + size.abs()) * u
    relative = relative + gamma(sum_depth(logits.shape[-1]), fmt)
    terms = p * (size.abs() * relative + each) + _flushed(p, fmt) * size.abs()
    return entropy, terms.sum(-1) + u * entropy


def entropy_bound(logits: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for H = -sum_v p_v l_v.

    The term p_v l_v has the error of l_v, b_v, times p_v, a relative b_v + 8u + |l_v| u of p_v, 2u
    of the products and g of the sum. The form log s + E[-d] stays within the same: |d_v| <= |l_v|,
    and b_v contains the error of s and of log s.

    Args:
        logits: [..., V].

    Returns:
        [...] float64, nats.
    """
    return _entropy_and_bound(logits, fmt)[1]


def entropy_gradient_bound(logits: Tensor, upstream: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for -upstream p_v (l_v + H), the gradient of the entropy.

    It holds for that form and for differentiating -sum p l step by step: that subtracts
    p_v sum_w (p_w l_w + p_w) from p_v l_v + p_v, parts of size p_v (|l_v| + 1) and p_v (H + 1),
    each with the relative error of p_v and the rounding of four operations. The parts themselves
    are wrong by p_v b_v (through l_v) and p_v times the error of the two sums: the bound of H, and
    the mean of b_v + 8u with g for sum p_v.

    Args:
        logits: [..., V]. upstream: [...].

    Returns:
        [..., V] float64; 0 at a zero probability.
    """
    u = fmt.unit_roundoff
    p, size, each = _all_entries(logits, fmt)
    entropy, entropy_error = (x.unsqueeze(-1) for x in _entropy_and_bound(logits, fmt))
    relative = each + (FUNCTION_ERROR + 4 + size.abs()) * u
    of_sum = entropy_error + (p * relative).sum(-1, keepdim=True)
    of_sum = of_sum + gamma(sum_depth(logits.shape[-1]), fmt)
    parts = size.abs() + entropy + 2
    bound = p * (parts * relative + each + of_sum) + _flushed(p, fmt) * parts
    return _with_upstream(bound, p * (size + entropy), logits, upstream, fmt)
