"""Wrong GAE: one mutation each, the rest as it should be.

The hazard. The recursion runs from the end to the front, and the end is where the padding is: a
mistake there reaches every token. ``catalogue`` says where each was seen. rewards, values and mask
are [B, T], True for a real token.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from precision_lib.ppo.advantages import gae
from precision_lib.ppo.masked import real_or_zero
from precision_lib.ppo.rows import fp32_or_wider


def _following(x: Tensor) -> Tensor:
    """x[:, t + 1], and 0 after the last column."""
    return pad(x[:, 1:], (0, 1))


def _backwards(delta: Tensor, factor: float) -> Tensor:
    """A_t = delta_t + factor A_(t+1), in the format of delta."""
    advantages = torch.zeros_like(delta)
    following = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        following = delta[:, t] + factor * following
        advantages[:, t] = following
    return advantages


def _both(advantages: Tensor, values: Tensor, wanted: torch.dtype) -> tuple[Tensor, Tensor]:
    """(advantages, returns) from float64 advantages and values."""
    return advantages.to(wanted), (advantages + values).to(wanted)


@torch.no_grad()
def gae_in_input_dtype(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The recursion runs in the format of rewards and values."""
    r, v = real_or_zero(rewards, mask), real_or_zero(values, mask)
    advantages = _backwards(r + gamma * _following(v) - v, gamma * lam)
    wanted = dtype or fp32_or_wider(rewards, values)
    return advantages.to(wanted), (advantages + v).to(wanted)


def gamma_in_values_dtype(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """gamma becomes a tensor of the values' format: in bf16 0.999 is 1."""
    rounded = float(torch.tensor(gamma, dtype=values.dtype))
    return gae(rewards, values, mask, rounded, lam, dtype)


@torch.no_grad()
def bootstrap_from_padding(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The last real token takes the critic's value of the padding behind it for its future."""
    r, v = real_or_zero(rewards, mask).double(), real_or_zero(values, mask).double()
    delta = r + gamma * _following(values.double()) - v
    advantages = _backwards(torch.where(mask, delta, 0), gamma * lam)
    return _both(advantages, v, dtype or fp32_or_wider(rewards, values))


@torch.no_grad()
def recursion_through_padding(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The recursion knows no mask; padding is zeroed only in the result."""
    v = values.double()
    advantages = _backwards(rewards.double() + gamma * _following(v) - v, gamma * lam)
    wanted = dtype or fp32_or_wider(rewards, values)
    return _both(torch.where(mask, advantages, 0), torch.where(mask, v, 0), wanted)


def gae_by_product_with_mask(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Padding is multiplied by 0, which a NaN survives on its way to the front."""
    everywhere = torch.ones_like(mask)
    return gae(rewards * mask, values * mask, everywhere, gamma, lam, dtype)


def gamma_and_lam_swapped(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The bootstrap is discounted by lam; the product of the two stays right."""
    return gae(rewards, values, mask, lam, gamma, dtype)


@torch.no_grad()
def decay_without_gamma(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The recursion decays by lam instead of gamma lam."""
    r, v = real_or_zero(rewards, mask).double(), real_or_zero(values, mask).double()
    advantages = _backwards(r + gamma * _following(v) - v, lam)
    return _both(advantages, v, dtype or fp32_or_wider(rewards, values))


def returns_from_the_next_value(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The return is the advantage plus the value of the following token."""
    advantages, _ = gae(rewards, values, mask, gamma, lam, dtype)
    following = _following(real_or_zero(values, mask))
    return advantages, torch.where(mask, advantages + following.to(advantages.dtype), 0)


def returns_left_in_padding(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The return of a padded slot is the critic's value of the padding."""
    advantages, returns = gae(rewards, values, mask, gamma, lam, dtype)
    return advantages, torch.where(mask, returns, values.to(returns.dtype))


@torch.no_grad()
def last_token_bootstraps_from_itself(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The value after the last real token is that token's own, not 0."""
    r, v = real_or_zero(rewards, mask).double(), real_or_zero(values, mask).double()
    last = mask & ~pad(mask[:, 1:], (0, 1))
    advantages = _backwards(r + gamma * torch.where(last, v, _following(v)) - v, gamma * lam)
    return _both(advantages, v, dtype or fp32_or_wider(rewards, values))


@torch.no_grad()
def recursion_across_sequences(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The sequences are packed into one, and nothing marks where one ends."""
    r, v = real_or_zero(rewards, mask).double(), real_or_zero(values, mask).double()
    packed_r, packed_v = r[mask].unsqueeze(0), v[mask].unsqueeze(0)
    delta = packed_r + gamma * _following(packed_v) - packed_v
    advantages = torch.zeros_like(r)
    advantages[mask] = _backwards(delta, gamma * lam).squeeze(0)
    return _both(advantages, v, dtype or fp32_or_wider(rewards, values))


def gae_left_in_input_dtype(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Both results keep the values' format, rounded to it once."""
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    return advantages.to(dtype or values.dtype), returns.to(dtype or values.dtype)


def gae_changes_its_rewards(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """The bootstrap is added to the caller's rewards."""
    result = gae(rewards, values, mask, gamma, lam)
    rewards[:, :-1] += gamma * values[:, 1:]
    return result
