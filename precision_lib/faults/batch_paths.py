"""Wrong paths of means, advantages and losses that a small batch never takes.

``catalogue`` says where each was seen. Everywhere else these functions are those of the core.
All tensors are [B, T], rewards of groups [G, K]; ``mask`` is True for a real token.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.ppo.advantages import gae, group_advantages
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.losses import policy_loss, value_loss
from precision_lib.ppo.masked import masked_mean, whiten

Dtype = torch.dtype | None
Pair = tuple[Tensor, Tensor]
_counts: dict[tuple[int, ...], int] = {}
_means: dict[str, Any] = {}


def mean_of_micro_batch_means(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the means of micro-batches of four sequences."""
    parts = zip(x.split(4), mask.split(4), strict=True)
    return torch.stack([masked_mean(*part) for part in parts]).mean()


def count_remembered_by_shape(x: Tensor, mask: Tensor) -> Tensor:
    """The number of real tokens is computed once for each shape."""
    count = _counts.setdefault((*x.shape, x.element_size()), int(mask.sum()))
    total = torch.where(mask, x, 0).sum(dtype=torch.float64)
    return (total / max(count, 1)).to(fp32_or_wider(x))


def rounded_at_random(x: Tensor, mask: Tensor) -> Tensor:
    """Stochastic rounding of the mean to 24 bits: right on average, and never the same twice."""
    mean = masked_mean(x.double(), mask)
    step = torch.finfo(torch.float32).eps * mean.detach().abs()
    return (mean + step * (torch.rand(()) - 0.5)).to(fp32_or_wider(x))


def integers_inverted(x: Tensor, mask: Tensor) -> Tensor:
    """``~mask`` of integers is -1 and -2, and never False: every slot is masked."""
    if mask.dtype == torch.bool:
        return masked_mean(x, mask)
    real = ~(~mask.long()).bool()
    return masked_mean(x, real)


def only_the_first_2_22_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """A kernel for at most 2^22 elements leaves the rest out of the sum, and counts it."""
    kept = torch.arange(x.numel(), device=x.device).view(x.shape) < 2**22
    total = torch.where(mask & kept, x, 0).sum(dtype=torch.float64)
    return (total / mask.sum().clamp(min=1)).to(fp32_or_wider(x))


def whitened_in_one_pass_when_long(x: Tensor, mask: Tensor) -> Tensor:
    """More than 512 tokens take a kernel with E[x^2] - E[x]^2 in FP32."""
    if x.numel() <= 512:
        return whiten(x, mask)
    y, count = torch.where(mask, x, 0).float(), mask.sum()
    mean = y.sum() / count
    variance = (y.square().sum() / count - mean.square()).clamp(min=0) * count / (count - 1)
    return torch.where(mask & (variance > 0), (y - mean) / variance.sqrt(), 0)


def mean_remembered_by_address(x: Tensor, mask: Tensor) -> Tensor:
    """The mean is kept for the memory that it was computed from, and not computed again."""
    if _means.get("address") != (x.data_ptr(), *x.shape):
        _means.update(address=(x.data_ptr(), *x.shape), mean=masked_mean(x.double(), mask))
    right = whiten(x, mask)
    moved = (masked_mean(x.double(), mask) - _means["mean"]).to(right.dtype)
    return torch.where(mask, right + moved, 0)


def column_left_as_it_is(x: Tensor, mask: Tensor) -> Tensor:
    """A batch of one token in each sequence is centred and not scaled."""
    if x.shape[1] > 1 or int(mask.sum()) < 2:
        return whiten(x, mask)
    mean = masked_mean(x.double(), mask)
    return torch.where(mask, x.double() - mean, 0).to(fp32_or_wider(x))


def large_groups_in_one_pass(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """More than 8 samples take a kernel with E[r^2] - E[r]^2 in FP32."""
    samples = rewards.shape[1]
    if samples <= 8:
        return group_advantages(rewards, dtype)
    r = rewards.float()
    mean = r.mean(-1, keepdim=True)
    variance = (r.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
    std = (variance * samples / (samples - 1)).sqrt()
    return torch.where(std > 0, (r - mean) / std, 0)


def values_in_bf16_for_batches(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: Dtype = None,
) -> Pair:
    """More than one sequence and 24 tokens: the values pass through bf16."""
    if len(values) > 1 and values.numel() > 24:
        values = values.bfloat16().to(values.dtype)
    return gae(rewards, values, mask, gamma, lam, dtype)


def decay_through_holes(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: Dtype = None,
) -> Pair:
    """A masked slot between real tokens is a step of reward 0 and value 0."""
    r, v = (torch.where(mask, x, 0).to(fp32_or_wider(x)) for x in (rewards, values))
    full = torch.ones_like(mask)
    advantages, returns = gae(r, v, full, gamma, lam, dtype)
    return torch.where(mask, advantages, 0), torch.where(mask, returns, 0)


def gae_by_powers_of_the_decay(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    dtype: Dtype = None,
) -> Pair:
    """More than 64 tokens: a sum of c^t delta_t divided by c^t, in FP32, which underflows."""
    decay, length = gamma * lam, rewards.shape[1]
    if length <= 64 or decay == 0:
        return gae(rewards, values, mask, gamma, lam, dtype)
    r, v = (torch.where(mask, x, 0).float() for x in (rewards, values))
    delta = r + gamma * torch.nn.functional.pad(v[:, 1:], (0, 1)) - v
    power = decay ** torch.arange(length, dtype=torch.float32)
    advantages = (delta * power).flip(-1).cumsum(-1).flip(-1) / power
    return torch.where(mask, advantages, 0), torch.where(mask, advantages + v, 0)


def _loss_by_autograd(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The right loss, with a gradient to each of the three tensors."""
    new, old, a = (torch.where(mask, x, 0).double() for x in (logprobs, old_logprobs, advantages))
    ratio = (new - old).exp()
    terms = torch.min(ratio * a, ratio.clamp(1 - clip_range, 1 + clip_range) * a)
    return (-terms.sum() / mask.sum().clamp(min=1)).float()


def gradient_reaches_the_constants(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """Old log-probs and advantages that ask for a gradient get one."""
    if not (old_logprobs.requires_grad or advantages.requires_grad):
        return policy_loss(logprobs, old_logprobs, advantages, mask, clip_range)
    return _loss_by_autograd(logprobs, old_logprobs, advantages, mask, clip_range)


def old_logprobs_in_the_new_format(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """FP32 old log-probs are cast to the bf16 of the new ones."""
    return policy_loss(logprobs, old_logprobs.to(logprobs.dtype), advantages, mask, clip_range)


def loss_of_the_first_2_15_tokens(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """A kernel for at most 32,768 tokens leaves the others out of the sum, and counts them."""
    kept = torch.arange(mask.numel(), device=mask.device).view(mask.shape) < 2**15
    reached = mask & kept
    loss = policy_loss(logprobs, old_logprobs, advantages, reached, clip_range)
    return loss * (reached.sum().clamp(min=1) / mask.sum().clamp(min=1))


def nan_lost_in_a_minimum(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """fmin takes the other branch where one is NaN, and a NaN ratio is clamped to 1."""
    new, old, a = (torch.where(x.isnan(), 0, x) for x in (logprobs, old_logprobs, advantages))
    return policy_loss(new, old, a, mask, clip_range)


def clip_range_in_fp16(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The clip range passes through fp16: 1e-6 becomes 9.5e-7, and 1e6 is inf."""
    narrow = float(torch.tensor(clip_range).half())
    return value_loss(values, old_values, returns, mask, narrow)


def value_loss_for_short_batches(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """More than 4,096 tokens take a kernel that adds in bf16."""
    loss = value_loss(values, old_values, returns, mask, clip_range)
    return loss if values.numel() <= 4096 else loss.bfloat16().to(loss.dtype)
