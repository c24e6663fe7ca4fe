"""Wrong GAE: one mutation each, the rest as it should be.

``catalogue`` says where each was seen. rewards, values and mask are [B, T], True for a real token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.advantages import gae
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import real_or_zero

#: (advantages, returns), both [B, T].
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Gae(Arguments[Pair]):
    """The arguments of :func:`gae`, and the steps of a recursion in float64."""

    rewards: Tensor
    values: Tensor
    mask: Tensor
    gamma: float
    lam: float
    dtype: torch.dtype | None = None
    original = staticmethod(gae)

    @property
    def wanted(self) -> torch.dtype:
        """The format of the result."""
        return self.dtype or fp32_or_wider(self.rewards, self.values)

    def real(self) -> Pair:
        """(rewards, values) in float64, 0 in masked slots."""
        r, v = real_or_zero(self.rewards, self.mask), real_or_zero(self.values, self.mask)
        return r.double(), v.double()

    def both(self, advantages: Tensor, values: Tensor) -> Pair:
        """(advantages, returns) from float64 advantages and values."""
        return advantages.to(self.wanted), (advantages + values).to(self.wanted)


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


@fault_of(Gae)
@torch.no_grad()
def gae_in_input_dtype(x: Gae) -> Pair:
    """The recursion runs in the format of rewards and values."""
    r, v = real_or_zero(x.rewards, x.mask), real_or_zero(x.values, x.mask)
    advantages = _backwards(r + x.gamma * _following(v) - v, x.gamma * x.lam)
    return x.both(advantages, v)


@fault_of(Gae)
def gamma_in_values_dtype(x: Gae) -> Pair:
    """gamma becomes a tensor of the values' format: in bf16 0.999 is 1."""
    return x.right(gamma=float(torch.tensor(x.gamma, dtype=x.values.dtype)))


@fault_of(Gae)
@torch.no_grad()
def bootstrap_from_padding(x: Gae) -> Pair:
    """The last real token takes the critic's value of the padding behind it for its future."""
    r, v = x.real()
    delta = r + x.gamma * _following(x.values.double()) - v
    return x.both(_backwards(torch.where(x.mask, delta, 0), x.gamma * x.lam), v)


@fault_of(Gae)
@torch.no_grad()
def recursion_through_padding(x: Gae) -> Pair:
    """The recursion knows no mask; padding is zeroed only in the result."""
    v = x.values.double()
    advantages = _backwards(x.rewards.double() + x.gamma * _following(v) - v, x.gamma * x.lam)
    return x.both(torch.where(x.mask, advantages, 0), torch.where(x.mask, v, 0))


@fault_of(Gae)
def gae_by_product_with_mask(x: Gae) -> Pair:
    """Padding is multiplied by 0, which a NaN survives on its way to the front."""
    rewards, values = x.rewards * x.mask, x.values * x.mask
    return x.right(rewards=rewards, values=values, mask=torch.ones_like(x.mask))


@fault_of(Gae)
def gamma_and_lam_swapped(x: Gae) -> Pair:
    """The bootstrap is discounted by lam; the product of the two stays right."""
    return x.right(gamma=x.lam, lam=x.gamma)


@fault_of(Gae)
@torch.no_grad()
def decay_without_gamma(x: Gae) -> Pair:
    """The recursion decays by lam instead of gamma lam."""
    r, v = x.real()
    return x.both(_backwards(r + x.gamma * _following(v) - v, x.lam), v)


@fault_of(Gae)
def returns_from_the_next_value(x: Gae) -> Pair:
    """The return is the advantage plus the value of the following token."""
    advantages, _ = x.right()
    following = _following(real_or_zero(x.values, x.mask))
    return advantages, torch.where(x.mask, advantages + following.to(advantages.dtype), 0)


@fault_of(Gae)
def returns_left_in_padding(x: Gae) -> Pair:
    """The return of a padded slot is the critic's value of the padding."""
    advantages, returns = x.right()
    return advantages, torch.where(x.mask, returns, x.values.to(returns.dtype))


@fault_of(Gae)
@torch.no_grad()
def last_token_bootstraps_from_itself(x: Gae) -> Pair:
    """The value after the last real token is that token's own, not 0."""
    r, v = x.real()
    last = x.mask & ~pad(x.mask[:, 1:], (0, 1))
    delta = r + x.gamma * torch.where(last, v, _following(v)) - v
    return x.both(_backwards(delta, x.gamma * x.lam), v)


@fault_of(Gae)
@torch.no_grad()
def recursion_across_sequences(x: Gae) -> Pair:
    """The sequences are packed into one, and nothing marks where one ends."""
    r, v = x.real()
    packed_r, packed_v = r[x.mask].unsqueeze(0), v[x.mask].unsqueeze(0)
    delta = packed_r + x.gamma * _following(packed_v) - packed_v
    advantages = torch.zeros_like(r)
    advantages[x.mask] = _backwards(delta, x.gamma * x.lam).squeeze(0)
    return x.both(advantages, v)


@fault_of(Gae)
def gae_left_in_input_dtype(x: Gae) -> Pair:
    """Both results keep the values' format, rounded to it once."""
    advantages, returns = x.right(dtype=None)
    return advantages.to(x.dtype or x.values.dtype), returns.to(x.dtype or x.values.dtype)


@fault_of(Gae)
def gae_changes_its_rewards(x: Gae) -> Pair:
    """The bootstrap is added to the caller's rewards."""
    result = x.right()
    x.rewards[:, :-1] += x.gamma * x.values[:, 1:]
    return result
