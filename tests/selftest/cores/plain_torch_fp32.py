"""A core in plain torch: FP32 throughout, autograd's gradients, the usual guards and no more.

B sequences, T tokens, V vocabulary, G groups, K samples; masks are True for a real token.
"""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    z = logits.float()
    depth = z - z.amax(-1, keepdim=True)
    chosen = depth.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
    return chosen - depth.exp().sum(-1).log()


def entropy(logits: Tensor) -> Tensor:
    z = logits.float()
    depth = z - z.amax(-1, keepdim=True)
    logprobs = depth - depth.exp().sum(-1, keepdim=True).log()
    possible = logprobs != -torch.inf
    finite = torch.where(possible, logprobs, 0)
    return -torch.where(possible, finite.exp() * finite, 0).sum(-1)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    d = policy_logprobs.float() - ref_logprobs.float()
    if estimator == "k1":
        return d
    return d * d / 2 if estimator == "k2" else torch.expm1(-d) + d


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    mask = mask.bool()
    return torch.where(mask, x.float(), 0).sum() / mask.sum().clamp(min=1)


def _standardised(x: Tensor) -> Tensor:
    y = x - x[..., :1]
    centred = y - y.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / max(x.shape[-1] - 1, 1)
    return torch.where(variance == 0, 0, centred / variance.sqrt())


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor) -> Tensor:
    mask = mask.bool()
    result = torch.zeros(x.shape, device=x.device)
    if bool(mask.any()):
        result[mask] = _standardised(x[mask].float())
    return result


@torch.no_grad()
def group_advantages(rewards: Tensor) -> Tensor:
    return _standardised(rewards.float())


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    mask = mask.bool()
    r, v = (torch.where(mask, x.float(), 0) for x in (rewards, values))
    carry = following = torch.zeros(len(r), device=r.device)
    steps = []
    for t in reversed(range(r.shape[1])):
        new = r[:, t] + gamma * following - v[:, t] + gamma * lam * carry
        carry = torch.where(mask[:, t], new, carry)
        following = torch.where(mask[:, t], v[:, t], following)
        steps.append(torch.where(mask[:, t], new, 0))
    advantages = torch.stack(steps[::-1], 1)
    return advantages, advantages + v


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    mask = mask.detach().bool()
    new, old, a = (
        torch.where(mask, x.float(), 0)
        for x in (logprobs, old_logprobs.detach(), advantages.detach())
    )
    log_ratio = new - old
    limit = torch.where(a >= 0, 1 + clip_range, 1 - clip_range)
    clipped = torch.where(a >= 0, log_ratio.exp() > limit, log_ratio.exp() < limit) | (a == 0)
    ratio = torch.where(clipped, limit, torch.where(clipped, 0, log_ratio).exp())
    return -torch.where(mask, ratio * a, 0).sum() / mask.sum().clamp(min=1)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    mask = mask.bool()
    v, old, target = (torch.where(mask, x.float(), 0) for x in (values, old_values, returns))
    clipped = torch.clamp(v, old - clip_range, old + clip_range)
    squares = torch.maximum((v - target).square(), (clipped - target).square())
    return squares.sum() / (2 * mask.sum().clamp(min=1))
