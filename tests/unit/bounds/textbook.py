"""Adversarial inputs for the kernels, and their textbook formulas in the dtype of the input.

The formulas are what a careful user writes in a few lines; they share nothing with the core. B
sequences, T tokens, V vocabulary entries; masked slots hold NaN or inf.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

#: Clip range of the policy and of the value loss.
CLIP = 0.2


def logits(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [4, V], tokens [4]) from nearly flat to confident, far from 0, with -inf."""
    for vocabulary in (3, 50, 1000):
        for spread in (2**-10, 1.0, 30.0):
            for offset in (0.0, -30.0, 1e4):
                z = torch.randn(4, vocabulary, generator=generator) * spread + offset
                z[1, 0] = z[1].max() + 20  # confident
                z[2, 0] = z[2].max() - 200  # exp underflows, the log-prob does not
                z[3, 0] = -math.inf
                yield z, torch.tensor([0, 0, 0, vocabulary - 1])


def logprob_pairs(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(policy, ref) log-probs [200] whose difference runs from 1e-7 to 80."""
    for scale in 10.0 ** np.arange(-7, 2):
        ref = -torch.rand(200, generator=generator) * 10
        yield ref + (torch.randn(200, generator=generator) * scale).clamp(-80, 80), ref


def masked(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, mask) [4, T] right-padded with NaN: means from 0 to 1000 std, tiny and large scales."""
    for length in (1, 3, 40, 500):
        for mean in (0.0, 1.0, 1000.0):
            for scale in (2.0**-20, 1.0, 2.0**20):
                x = (torch.randn(4, length, generator=generator) + mean) * scale
                x[0, 0] += 50 * scale  # an outlier
                mask = torch.arange(length) < torch.tensor([[length], [length // 2], [1], [0]])
                x[~mask] = math.nan
                yield x, mask


def groups(generator: torch.Generator) -> Iterator[tuple[Tensor]]:
    """Rewards [G, K] with a mean of 1000 to 0.01 std; the last group is constant."""
    for scale in (1e-3, 1.0, 100.0):
        rewards = torch.randn(20, 8, generator=generator) * scale + 1
        rewards[-1] = rewards[-1, 0]
        yield (rewards,)


def episodes(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor, float, float]]:
    """(rewards, values, mask, gamma, lam), values up to 1e4 times the rewards."""
    for length in (1, 2, 30, 400):
        for scale in (1.0, 1e4):
            mask = torch.arange(length) < torch.tensor([[length], [length // 2], [0]])
            rewards, values = torch.randn(2, 3, length, generator=generator)
            values = torch.where(mask, values * scale, math.inf)
            rewards[~mask] = math.nan
            for gamma, lam in ((1.0, 1.0), (0.99, 0.95), (0.9, 0.0)):
                yield rewards, values, mask, gamma, lam


def policy_steps(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(logprobs, old, advantages, mask): before the update, near the clip limits, far away."""
    for x, mask in masked(generator):
        old = torch.where(mask, -torch.rand(x.shape, generator=generator) * 10, math.nan)
        advantages = torch.randn(x.shape, generator=generator)
        advantages[:, 0] = 0.0
        for step in (0.0, 1e-3, 0.2, 5.0):
            new = old + torch.randn(x.shape, generator=generator) * step
            yield new, old, advantages, mask


def value_steps(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(values, old, returns, mask): inside and outside the clip range, small and large values."""
    for old, mask in masked(generator):
        for step in (0.1, 2.0):
            noise = torch.randn(2, *old.shape, generator=generator)
            yield old + noise[0] * step, old, old + noise[1], mask


def token_logprobs(z: Tensor, tokens: Tensor) -> Tensor:
    d = z - z.max(-1, keepdim=True).values
    return d.gather(-1, tokens[..., None])[..., 0] - d.exp().sum(-1).log()


def entropy(z: Tensor) -> Tensor:
    log_p = torch.log_softmax(z, -1)
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)


def kl_penalty(policy: Tensor, ref: Tensor, estimator: str) -> Tensor:
    d = policy - ref
    return {"k1": d, "k2": 0.5 * d * d, "k3": torch.expm1(-d) + d}[estimator]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x)).sum() / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    if bool((x[mask] == x[mask][:1]).all()):
        return torch.zeros_like(x)
    centred = torch.where(mask, x - masked_mean(x, mask), torch.zeros_like(x))
    return centred / (centred.square().sum() / (mask.sum() - 1)).sqrt()


def group_advantages(rewards: Tensor) -> Tensor:
    everything = torch.ones(1, rewards.shape[1], dtype=torch.bool)
    return torch.cat([whiten(row[None], everything) for row in rewards])


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages and returns, stacked: [2, B, T]."""
    r, v = (torch.where(mask, x, torch.zeros_like(x)) for x in (rewards, values))
    advantages, carry = torch.zeros_like(r), torch.zeros_like(r[:, 0])
    following = torch.zeros_like(carry)
    for t in reversed(range(r.shape[1])):
        carry = r[:, t] + gamma * following - v[:, t] + gamma * lam * carry
        advantages[:, t], following = carry, v[:, t]
    return torch.stack([advantages, advantages + v]) * mask


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = torch.where(mask, new - old, 0).exp()
    a = torch.where(mask, advantages, 0)
    return masked_mean(-torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a), mask)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    v, o, r = (torch.where(mask, x, 0) for x in (values, old, returns))
    clipped = o + (v - o).clamp(-CLIP, CLIP)
    return masked_mean(0.5 * torch.maximum((v - r).square(), (clipped - r).square()), mask)
