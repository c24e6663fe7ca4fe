"""Wrong group advantages: one mutation each, the rest as it should be.

``catalogue`` says where each was seen. Rewards are [G, K], G groups of K samples.
"""

import torch
from torch import Tensor

from precision_lib.ppo.advantages import group_advantages
from precision_lib.ppo.logit_pieces import fp32_or_wider

Dtype = torch.dtype | None


def _deviations(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(r - mean, sample variance) of each group in float64; a constant gives exact zeros."""
    r = rewards.double() - rewards[:, :1].double()
    centred = r - r.mean(-1, keepdim=True)
    return centred, centred.square().sum(-1, keepdim=True) / max(rewards.shape[1] - 1, 1)


def group_statistics_in_rewards_dtype(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """Mean and standard deviation in the format that the reward model happened to return."""
    centred, std = rewards - rewards.mean(-1, keepdim=True), rewards.std(-1, keepdim=True)
    normalised = torch.where(std > 0, centred / std, 0)
    return normalised.to(dtype or fp32_or_wider(rewards))


def group_one_pass_variance(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """E[r^2] - E[r]^2 in FP32."""
    r, samples = rewards.to(dtype or fp32_or_wider(rewards)), rewards.shape[1]
    mean = r.mean(-1, keepdim=True)
    variance = (r.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
    std = (variance * samples / max(samples - 1, 1)).sqrt()
    return torch.where(std > 0, (r - mean) / std, 0)


def group_epsilon(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """(r - mean) / (std + 1e-4): close rewards lose the size of their advantage."""
    centred, variance = _deviations(rewards)
    return (centred / (variance.sqrt() + 1e-4)).to(dtype or fp32_or_wider(rewards))


def group_population_std(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """Divided by K where the sample standard deviation has K - 1."""
    centred, variance = _deviations(rewards)
    std = (variance * (rewards.shape[1] - 1) / rewards.shape[1]).sqrt()
    return torch.where(std > 0, centred / std, 0).to(dtype or fp32_or_wider(rewards))


def group_without_a_guard(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """Equal rewards divide 0 by 0."""
    centred, variance = _deviations(rewards)
    return (centred / variance.sqrt()).to(dtype or fp32_or_wider(rewards))


def group_noise_passes_the_guard(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """std > 0 in FP32 is true for equal rewards whose mean is rounded: noise over noise."""
    r = rewards.to(dtype or fp32_or_wider(rewards))
    centred = r - r.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / max(rewards.shape[1] - 1, 1)
    return torch.where(variance > 0, centred / variance.sqrt(), 0)


def group_of_one_is_nan(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """The library's std of one sample is NaN, and the guard asks whether it is 0."""
    centred, _ = _deviations(rewards)
    std = centred.std(-1, keepdim=True)
    return torch.where(std == 0, 0, centred / std).to(dtype or fp32_or_wider(rewards))


def statistics_of_the_whole_batch(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """Mean and standard deviation over all groups together."""
    return group_advantages(rewards.reshape(1, -1), dtype).view(rewards.shape)


def group_advantages_left_in_input_dtype(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """The result keeps the rewards' format, rounded to it once."""
    return group_advantages(rewards).to(dtype or rewards.dtype)


def keepdim_forgotten(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """The standard deviations of G groups meet K samples along the wrong axis."""
    centred, variance = _deviations(rewards)
    std = variance.squeeze(-1).sqrt()
    return torch.where(std > 0, centred / std, 0).to(dtype or fp32_or_wider(rewards))


def rewards_cast_before_statistics(rewards: Tensor, dtype: Dtype = None) -> Tensor:
    """Rewards are cast to bf16, and then mean and deviation are taken as they should be."""
    return group_advantages(rewards.to(torch.bfloat16).to(dtype or fp32_or_wider(rewards)))
