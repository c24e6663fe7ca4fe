"""Wrong paths of means, advantages and losses that a small batch never takes.

``catalogue`` says where each was seen. Everywhere else these functions are those of the core.
All tensors are [B, T], rewards of groups [G, K]; ``mask`` is True for a real token.
"""

import torch
from torch import Tensor

from precision_lib.faults.arguments import fault_of
from precision_lib.faults.gae import Gae, Pair
from precision_lib.faults.losses import PolicyLoss, ValueLoss
from precision_lib.ppo.advantages import group_advantages
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import masked_mean, whiten

Dtype = torch.dtype | None
_counts: dict[tuple[int, ...], int] = {}
_means: dict[tuple[int, ...], Tensor] = {}


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
    first = torch.arange(x.numel(), device=x.device).view(x.shape) < 2**22
    total = torch.where(mask & first, x, 0).sum(dtype=torch.float64)
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
    address = (x.data_ptr(), *x.shape)
    if address not in _means:
        _means.clear()
        _means[address] = masked_mean(x.double(), mask)
    right = whiten(x, mask)
    moved = (masked_mean(x.double(), mask) - _means[address]).to(right.dtype)
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


@fault_of(Gae)
def values_in_bf16_for_batches(x: Gae) -> Pair:
    """More than one sequence and 24 tokens: the values pass through bf16."""
    if len(x.values) <= 1 or x.values.numel() <= 24:
        return x.right()
    return x.right(values=x.values.bfloat16().to(x.values.dtype))


@fault_of(Gae)
def decay_through_holes(x: Gae) -> Pair:
    """A masked slot between real tokens is a step of reward 0 and value 0."""
    r, v = (torch.where(x.mask, y, 0).to(fp32_or_wider(y)) for y in (x.rewards, x.values))
    advantages, returns = x.right(rewards=r, values=v, mask=torch.ones_like(x.mask))
    return torch.where(x.mask, advantages, 0), torch.where(x.mask, returns, 0)


@fault_of(Gae)
def gae_by_powers_of_the_decay(x: Gae) -> Pair:
    """More than 64 tokens: a sum of c^t delta_t divided by c^t, in FP32, which underflows."""
    decay, length = x.gamma * x.lam, x.rewards.shape[1]
    if length <= 64 or decay == 0:
        return x.right()
    r, v = (torch.where(x.mask, y, 0).float() for y in (x.rewards, x.values))
    delta = r + x.gamma * torch.nn.functional.pad(v[:, 1:], (0, 1)) - v
    power = decay ** torch.arange(length, dtype=torch.float32)
    advantages = (delta * power).flip(-1).cumsum(-1).flip(-1) / power
    return torch.where(x.mask, advantages, 0), torch.where(x.mask, advantages + v, 0)


@fault_of(PolicyLoss)
def gradient_reaches_the_constants(x: PolicyLoss) -> Tensor:
    """Old log-probs and advantages that ask for a gradient get one."""
    if not (x.old_logprobs.requires_grad or x.advantages.requires_grad):
        return x.right()
    return (x.terms().sum() / x.mask.sum().clamp(min=1)).float()


@fault_of(PolicyLoss)
def old_logprobs_in_the_new_format(x: PolicyLoss) -> Tensor:
    """FP32 old log-probs are cast to the bf16 of the new ones."""
    return x.right(old_logprobs=x.old_logprobs.to(x.logprobs.dtype))


@fault_of(PolicyLoss)
def loss_of_the_first_2_15_tokens(x: PolicyLoss) -> Tensor:
    """A kernel for at most 32,768 tokens leaves the others out of the sum, and counts them."""
    first = torch.arange(x.mask.numel(), device=x.mask.device).view(x.mask.shape) < 2**15
    reached = x.mask & first
    count = x.mask.sum().clamp(min=1)
    return x.right(mask=reached) * (reached.sum().clamp(min=1) / count)


@fault_of(PolicyLoss)
def nan_lost_in_a_minimum(x: PolicyLoss) -> Tensor:
    """fmin takes the other branch where one is NaN, and a NaN ratio is clamped to 1."""
    tensors = {name: getattr(x, name) for name in ("logprobs", "old_logprobs", "advantages")}
    return x.right(**{name: torch.where(y.isnan(), 0, y) for name, y in tensors.items()})


@fault_of(ValueLoss)
def clip_range_in_fp16(x: ValueLoss) -> Tensor:
    """The clip range passes through fp16: 1e-6 becomes 9.5e-7, and 1e6 is inf."""
    return x.right(clip_range=float(torch.tensor(x.clip_range).half()))


@fault_of(ValueLoss)
def value_loss_for_short_batches(x: ValueLoss) -> Tensor:
    """More than 4,096 tokens take a kernel that adds in bf16."""
    loss = x.right()
    return loss if x.values.numel() <= 4096 else loss.bfloat16().to(loss.dtype)
