"""A core in torch: the textbook formulas in float64, derived by autograd, returned in float64.

B sequences, T tokens, V vocabulary, G groups, K samples; masks are True for a real token.
"""

import torch
from torch import Tensor


def _real(mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(mask.bool(), x.double(), 0.0)


def _mean(terms: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), terms, 0.0).sum() / mask.detach().sum().clamp(min=1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    finite = torch.where(torch.isinf(logprobs), 0.0, logprobs)
    return -(logprobs.exp() * finite).sum(-1)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    d = policy_logprobs.double() - ref_logprobs.double()
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"unknown estimator {estimator!r}")


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return _mean(x.double(), mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    x = _real(mask, x)
    centred = torch.where(mask.bool(), x - x.sum() / mask.sum().clamp(min=1), 0.0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    return torch.where(variance == 0, 0.0, centred / variance.sqrt())


def group_advantages(rewards: Tensor) -> Tensor:
    rewards = rewards.double()
    centred = rewards - rewards.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / max(rewards.shape[1] - 1, 1)
    return torch.where(variance == 0, 0.0, centred / variance.sqrt())


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    rewards, values, real = _real(mask, rewards), _real(mask, values), mask.bool()
    advantages = torch.zeros_like(rewards)
    advantage = next_value = torch.zeros(len(rewards), dtype=torch.float64)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(real[:, t], delta + gamma * lam * advantage, 0.0)
        advantage = torch.where(real[:, t], advantages[:, t], advantage)
        next_value = torch.where(real[:, t], values[:, t], next_value)
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    ratio = torch.exp(_real(mask, logprobs) - _real(mask, old_logprobs.detach()))
    clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
    a = _real(mask, advantages.detach())
    return -_mean(torch.min(ratio * a, clipped * a), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    v, old, target = _real(mask, values), _real(mask, old_values), _real(mask, returns)
    clipped = torch.clamp(v, old - clip_range, old + clip_range)
    return _mean(0.5 * torch.max((v - target).square(), (clipped - target).square()), mask)
