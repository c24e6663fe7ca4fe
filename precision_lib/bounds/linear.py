"""Bounds of log-probs whose logits are themselves computed: from a product or a temperature.

Notation as in ``softmax.py``; e_v is the error of the logit z_v. An error of a logit reaches the
log-prob l_t as e_t and, through the normaliser, as the mean E[e] under p, to second order
e^(2 max e) times that.
"""

import math

import torch
from torch import Tensor

from precision_lib.arguments import Linear, taking
from precision_lib.bounds.model import (
    FP32,
    FUNCTION_ERROR,
    gamma,
    infinite_beyond,
    sum_depth,
)
from precision_lib.bounds.softmax import log_softmax_bound
from precision_lib.formats import Format


def _entries(z: Tensor, errors: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """(p, l, bound of every l_v) of logits [..., V] that carry ``errors``.

    Blocks of the vocabulary that are joined rescale their sums, at most once for each doubling of
    the number of blocks: ceil(log2 V) factors of exp and product, 10u each.
    """
    logprobs = torch.log_softmax(z, -1)
    p = logprobs.exp()
    plain = log_softmax_bound(z, torch.zeros_like(logprobs[..., 0]), fmt).unsqueeze(-1)
    through = (p * errors).sum(-1, keepdim=True)
    through = through * torch.exp(2 * errors.amax(-1, keepdim=True).clamp(max=1.0))
    blocks = (FUNCTION_ERROR + 2) * fmt.unit_roundoff * math.ceil(math.log2(max(z.shape[-1], 2)))
    size = torch.where(torch.isfinite(logprobs), logprobs, 0).abs()
    each = plain + 2 * fmt.unit_roundoff * size + errors + through + blocks
    return p, logprobs, torch.where(torch.isfinite(logprobs), each, 0)


def _slopes(
    z: Tensor, errors: Tensor, tokens: Tensor, upstream: Tensor, scale: float, fmt: Format
) -> tuple[Tensor, Tensor]:
    """(dz = upstream (onehot - p) / scale, its bound), [..., V].

    p_v has the relative error of l_v and 8u; products and quotients add 5u. The entry of the
    largest logit may carry the residue of differentiating through max z.
    """
    u = fmt.unit_roundoff
    p, _, each = _entries(z, errors, fmt)
    exact = torch.zeros_like(p).scatter_(-1, tokens.unsqueeze(-1), 1.0) - p
    flushed = torch.where(p > 0, fmt.smallest_normal, 0.0)
    bound = p * (each + (FUNCTION_ERROR + 2) * u) + 5 * u * exact.abs() + flushed
    of_sum = gamma(sum_depth(z.shape[-1]) + 2, fmt) * exact.abs().sum(-1, keepdim=True)
    residue = bound.sum(-1, keepdim=True) + of_sum
    bound = bound + torch.where(z == z.max(-1, keepdim=True).values, residue, 0.0)
    up = upstream.double().unsqueeze(-1) / scale
    return up * exact, up.abs() * bound + torch.where(bound > 0, fmt.smallest_subnormal, 0.0)


def _chosen(z: Tensor, errors: Tensor, tokens: Tensor, fmt: Format) -> Tensor:
    _, logprobs, each = _entries(z, errors, fmt)
    index = tokens.unsqueeze(-1)
    exact, bound = (x.gather(-1, index).squeeze(-1) for x in (logprobs, each))
    finite = torch.where(torch.isfinite(exact), exact, 0)
    return torch.where(exact == -torch.inf, 0, infinite_beyond(finite, bound, fmt))


def _divided(logits: Tensor, temperature: float, fmt: Format) -> tuple[Tensor, Tensor]:
    """(logits / temperature, 3u of it): a quotient, or a product with a rounded reciprocal."""
    z = logits.double() / temperature
    return z, 3 * fmt.unit_roundoff * torch.where(torch.isfinite(z), z, 0).abs()


def tempered_logprobs_bound(
    logits: Tensor, tokens: Tensor, temperature: float, fmt: Format = FP32
) -> Tensor:
    """Bound for log softmax(logits / temperature)[tokens]: e_v = 3u |z_v|.

    Args:
        logits: [..., V]. tokens: [...].

    Returns:
        [...] float64; 0 where the exact result is -inf.
    """
    return _chosen(*_divided(logits, temperature, fmt), tokens, fmt)


def tempered_logprobs_gradient_bound(
    logits: Tensor, tokens: Tensor, temperature: float, upstream: Tensor, fmt: Format = FP32
) -> Tensor:
    """Bound for upstream (onehot - p) / temperature, [..., V] float64."""
    z, errors = _divided(logits, temperature, fmt)
    return _slopes(z, errors, tokens, upstream, temperature, fmt)[1]


def _product(x: Linear[Tensor, Tensor], fmt: Format) -> tuple[Tensor, Tensor]:
    """(z, e) of hidden @ weight.T / temperature: gamma_(H + 3) sum |h w| / temperature.

    Sums over H in any order, the quotient, or a hidden state or weight scaled before.
    """
    h, w = x.hidden.double(), x.weight.double()
    z = h @ w.T / x.temperature
    return z, gamma(h.shape[-1] + 3, fmt) * (h.abs() @ w.abs().T) / x.temperature


@taking(Linear)
def linear_token_logprobs_bound(x: Linear[Tensor, Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for log softmax(hidden @ weight.T / temperature)[tokens].

    Args:
        hidden: [B, T, H]. weight: [V, H]. tokens: [B, T].

    Returns:
        [B, T] float64.
    """
    return _chosen(*_product(x, fmt), x.tokens, fmt)


@taking(Linear)
def linear_token_logprobs_gradient_bounds(
    x: Linear[Tensor, Tensor], upstream: Tensor, fmt: Format = FP32
) -> tuple[Tensor, Tensor]:
    """Bounds for dz weight and dz^T hidden, with dz = upstream (onehot - p) / temperature.

    The error of dz times the other factor, and a sum over V entries or N = B T rows in any order:
    gamma_V and gamma_N of the magnitudes, with two more for chunks that are added.

    Returns:
        [B, T, H] and [V, H], float64.
    """
    z, errors = _product(x, fmt)
    dz, bound = _slopes(z, errors, x.tokens, upstream, x.temperature, fmt)
    h, w = x.hidden.double().abs().flatten(0, 1), x.weight.double().abs()
    dz, bound = dz.abs().flatten(0, 1), bound.flatten(0, 1)
    of_hidden = bound @ w + gamma(w.shape[0] + 2, fmt) * (dz @ w)
    of_weight = bound.T @ h + gamma(h.shape[0] + 2, fmt) * (dz.T @ h)
    tiny = fmt.smallest_normal
    return (of_hidden + tiny).view(x.hidden.shape), of_weight + tiny
