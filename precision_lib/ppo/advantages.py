"""Advantages: generalised advantage estimation and group-normalised rewards.

The hazards. In bf16 the recursion A_t = delta_t + c A_{t+1} stops decaying once c A and A round to
the same number: with 4,096 tokens and gamma = 0.999 the returns are off by 190 %. A group's mean
and standard deviation taken in the rewards' own bf16 turn [1, 1, 1, 1.0078] into advantages of
about [0, 0, 0, 2]; a variance as E[r^2] - E[r]^2 in FP32 made an advantage of -2075 out of
identical rewards. A NaN in a padded slot runs backwards through the whole sequence. A recursion
over the slots instead of the real tokens decays once more in each hole that tool output leaves.

B sequences, T tokens, G groups, K samples per group. Nothing here carries a gradient: advantages
and returns are constants of the losses.
"""

import torch
from torch import Tensor

from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import check_mask, is_right_padded, real_or_zero


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages A_t = sum_j (gamma lam)^j delta_(t+j) and returns A_t + V_t.

    delta_t = r_t + gamma V_(t+1) - V_t, the value after the last real token being ``bootstrap``, by
    default 0: a response that ended is worth nothing more, one that was cut off is. t counts real
    tokens: a hole in the mask has no reward and no decay. The sum over j is a scan in log2 T
    steps, in float64; with a ``dtype`` it is the usual recursion, in it.

    Args:
        rewards, values: [B, T], any floating-point format; masked slots may hold NaN or inf.
        mask: [B, T], bool; True for a real token. Masked slots may stand anywhere.
        gamma, lam: discount and GAE lambda, each in [0, 1].
        dtype: None, or a format in which to do it on purpose: inputs are cast to it first and
            every operation rounds to it.
        bootstrap: None for 0, or [B], the value of the state behind the last real token; it does
            not matter for a sequence without one.

    Returns:
        (advantages, returns), [B, T] each, of ``dtype``, by default FP32 or the inputs' own
        format if wider; 0 in masked slots.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool or not [B, T], or a gamma or
            lam outside [0, 1].

    Source: Schulman et al., "High-Dimensional Continuous Control Using GAE", equation 16.
    """
    check_mask(mask, rewards=rewards, values=values)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")
    if not is_right_padded(mask):
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # the real tokens come first
        r, v, real = (x.gather(1, order) for x in (rewards, values, mask))
        advantages, returns = gae(r, v, real, gamma, lam, dtype, bootstrap)
        return _scattered(advantages, order), _scattered(returns, order)
    wanted = dtype or fp32_or_wider(rewards, values)
    inside = dtype or torch.float64
    r, v = (real_or_zero(x, mask).to(inside) for x in (rewards, values))
    delta = r.sub_(v)
    delta[:, :-1] += gamma * v[:, 1:]
    if bootstrap is not None:
        _add_at_the_end(delta, mask, gamma, bootstrap)
    advantages = (_discounted_sum if dtype is None else _recursion)(delta, gamma * lam)
    return advantages.to(wanted), (advantages + v).to(wanted)


def _scattered(packed: Tensor, order: Tensor) -> Tensor:
    """What ``packed`` [B, T] was before its slots were gathered in this order."""
    return torch.empty_like(packed).scatter_(1, order, packed)


def _add_at_the_end(delta: Tensor, mask: Tensor, gamma: float, bootstrap: Tensor) -> None:
    """delta += gamma * bootstrap at the last real token of each sequence that has one."""
    if bootstrap.shape != mask.shape[:1]:
        raise ValueError(
            f"expected bootstrap [B] = ({mask.shape[0]},), got {tuple(bootstrap.shape)}"
        )
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    delta += torch.where(last, gamma * bootstrap.to(delta.dtype).unsqueeze(-1), 0)


def _discounted_sum(x: Tensor, factor: float) -> Tensor:
    """sum_j factor^j x[:, t + j], by doubling: after k steps a slot holds its first 2^k terms."""
    step, weight = 1, factor
    while step < x.shape[1] and weight != 0:
        longer = x.clone()
        longer[:, :-step].add_(x[:, step:], alpha=weight)
        x, step, weight = longer, 2 * step, weight * weight
    return x


def _recursion(delta: Tensor, factor: float) -> Tensor:
    """A_t = delta_t + factor A_(t+1), backwards, as trainers write it: T steps that each round."""
    steps = list(delta.unbind(1))
    for t in range(len(steps) - 2, -1, -1):
        steps[t] = steps[t] + factor * steps[t + 1]
    return torch.stack(steps, dim=1) if steps else delta


@torch.no_grad()
def group_advantages(rewards: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(r - mean) / std within each group, with the sample standard deviation (K - 1).

    Args:
        rewards: [G, K], any floating-point format.
        dtype: None, for float64 inside; or a format in which to do it on purpose, the textbook
            way: rewards are cast to it first and every operation rounds to it, so that a group of
            equal rewards may come out as noise.

    Returns:
        [G, K] of ``dtype``, by default FP32 or the rewards' own format if wider, and then 0 for a
        group of equal rewards or of one. A NaN or inf makes its group NaN.

    Raises:
        ValueError: when ``rewards`` is not two-dimensional or empty.

    Source: Shao et al., "DeepSeekMath", section 4.1.2 (GRPO, outcome supervision).
    """
    if rewards.dim() != 2 or rewards.shape[1] == 0:
        raise ValueError(f"expected rewards [G, K] with K >= 1, got {tuple(rewards.shape)}")
    r = rewards.to(dtype or torch.float64)
    if dtype is None:  # relative to the first of the group: a constant group gives exact zeros
        r = r - r[:, :1]
    centred = r - r.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / max(rewards.shape[1] - 1, 1)
    normalised = torch.where(variance == 0, 0, centred / variance.sqrt())
    return normalised.to(dtype or fp32_or_wider(rewards))


@torch.no_grad()
def rloo_advantages(rewards: Tensor) -> Tensor:
    """r_k minus the mean of the other K - 1 rewards of its group: K / (K - 1) (r_k - mean).

    Args:
        rewards: [G, K], any floating-point format, K >= 2.

    Returns:
        [G, K], float64 for float64 rewards and float32 otherwise. A NaN or inf makes its group
        NaN.

    Raises:
        ValueError: when ``rewards`` is not two-dimensional or a group has fewer than two.

    Source: Ahmadian et al., "Back to Basics: Revisiting REINFORCE-Style Optimization", section 3.2.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"expected rewards [G, K] with K >= 2, got {tuple(rewards.shape)}")
    r = rewards.double()
    r = r - r[:, :1]  # a constant group gives exact zeros
    count = rewards.shape[1]
    total = r.sum(-1, keepdim=True)
    return r.mul_(count).sub_(total).div_(count - 1).to(fp32_or_wider(rewards))
