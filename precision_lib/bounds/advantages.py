"""Bound of generalised advantage estimation: short sums with many roundings.

``mask[b, t]`` is True for a real token; masked slots have bound 0 and never enter.
"""

import math

import numpy as np
import torch
from torch import Tensor

from precision_lib.bounds.model import FP32, infinite_beyond, sum_depth
from precision_lib.formats import Format


def _backward_scan(x: Tensor, decay: float) -> Tensor:
    """y_t = x_t + decay y_{t+1} along the last dimension."""
    columns = x.movedim(-1, 0).contiguous().numpy()
    result, carry = np.zeros_like(columns), np.zeros(columns.shape[1:])
    with np.errstate(all="ignore"):
        for t in reversed(range(len(columns))):
            carry = columns[t] + decay * carry
            result[t] = carry
    return torch.from_numpy(result).movedim(0, -1)


def gae_bound(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    fmt: Format = FP32,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Bounds for A_t = sum_j c^j delta_{t+j}, c = gamma lam, and for A_t + V_t.

    delta = r + gamma V' - V of parts m = |r| + gamma |V'| + |V| passes 4 roundings: of gamma, the
    product, two sums. A term j ahead passes j times a product and a sum in the backward
    recurrence, each with a c that carries 3 (of gamma, lam, their product): 5 (j + 1) in all. A
    scan as a tree passes 3 per level instead of 2 per step. So the term's relative error is at most
    gamma_(5(j+1) + 3 ceil(log2 L) + 6), L the row's length, and its weight c^j. The sums
    S = sum_j c^j m_{t+j} and sum_j j c^j m_{t+j} follow from two recurrences.

    Args:
        rewards, values, mask: [B, T]; masked slots may stand anywhere, and are skipped.
        bootstrap: [B], V' at the last real token; None for 0.

    Returns:
        (advantages, returns), both [B, T] float64; inf where the exact result overflows.
    """
    u, length = fmt.unit_roundoff, max(rewards.shape[-1], 1)
    zero = torch.zeros(rewards.shape, dtype=torch.float64)
    real_first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    reward = torch.where(mask, rewards.double(), zero).gather(-1, real_first)
    value = torch.where(mask, values.double(), zero).gather(-1, real_first)
    mask = mask.gather(-1, real_first)
    following = torch.cat([value[..., 1:], zero[..., :1]], -1)
    if bootstrap is not None:
        last = mask & ~torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], -1)
        following = torch.where(last, bootstrap.double().unsqueeze(-1), following)
    decay, levels = gamma * lam, 3 * math.ceil(math.log2(length)) + 6
    parts = reward.abs() + gamma * following.abs() + value.abs()
    plain = _backward_scan(parts, decay)
    ahead = torch.cat([decay * plain[..., 1:], zero[..., :1]], -1)
    by_distance = _backward_scan(ahead, decay)
    most = (5 * length + levels) * u
    bound = u * (5 * (by_distance + plain) + levels * plain) / (1 - most)
    bound = bound + 2 * length * fmt.smallest_subnormal
    advantage = _backward_scan(reward + gamma * following - value, decay)
    of_return = bound + u * ((advantage + value).abs() + bound)
    bound = infinite_beyond(advantage, bound, fmt)
    of_return = infinite_beyond(advantage + value, of_return, fmt)
    bound, of_return = torch.where(mask, bound, zero), torch.where(mask, of_return, zero)
    return (zero.scatter(-1, real_first, bound), zero.scatter(-1, real_first, of_return))


def rloo_advantages_bound(rewards: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for r_k minus the mean of the other K - 1 rewards of its group.

    It holds for (sum - r) / (K - 1), for the mean of the others and for K / (K - 1) (r - mean): a
    sum of K terms, gamma_depth sum |r|, up to four more roundings of sum, factor and quotient, all
    over K - 1; the last subtraction and a factor round r and the result, 4u.

    Args:
        rewards: [G, K].

    Returns:
        [G, K] float64.
    """
    r, count, u = rewards.double(), rewards.shape[-1], fmt.unit_roundoff
    nu = (sum_depth(count) + 4) * u
    total = r.abs().sum(-1, keepdim=True) / max(count - 1, 1)
    exact = (r * count - r.sum(-1, keepdim=True)) / max(count - 1, 1)
    return nu / (1 - nu) * total + 4 * u * (2 * r.abs() + exact.abs()) + fmt.smallest_subnormal
