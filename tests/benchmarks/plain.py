"""Yardsticks in plain torch and numpy, named as what they are.

They stand for trainers that write the formula inline and offer no function to call (TRL's losses
and k3, CleanRL). Each takes a case's inputs as attributes and returns the call to time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.timed import Call


def log_softmax_gather(x: Any) -> Call:
    """log_softmax in FP32 and a gather: what one writes first."""
    index = x.tokens.unsqueeze(-1)
    return lambda: torch.log_softmax(x.logits.float(), -1).gather(-1, index).squeeze(-1)


def cross_entropy(x: Any) -> Call:
    """torch's cross-entropy, in the format of the logits."""
    flat, shape = x.tokens.flatten(), x.tokens.shape
    return lambda: -F.cross_entropy(x.logits.flatten(0, 1), flat, reduction="none").view(shape)


def entropy(x: Any) -> Call:
    """-sum p log p from an FP32 log-softmax."""

    def call() -> Tensor:
        logprobs = torch.log_softmax(x.logits.float(), -1)
        return -(logprobs.exp() * logprobs).sum(-1)

    return call


def kl_penalty(x: Any) -> Call:
    """The estimators as the literature prints them."""
    formulas: dict[str, Callable[[Tensor], Tensor]] = {
        "k1": lambda d: d,
        "k2": lambda d: 0.5 * d.square(),
        "k3": lambda d: torch.exp(-d) - 1 + d,
    }
    formula, policy, reference = formulas[x.estimator], x.policy_logprobs, x.ref_logprobs
    return lambda: formula(policy - reference)


def whiten(inputs: Any) -> Call:
    """Two passes, masked by a product."""
    x: Tensor = inputs.x
    mask: Tensor = inputs.mask

    def call() -> Tensor:
        count = mask.sum()
        mean = (x * mask).sum() / count
        variance = ((x - mean).square() * mask).sum() / (count - 1)
        return (x - mean) * torch.rsqrt(variance + 1e-8)

    return call


def numpy_gae(x: Any) -> Call:
    """A loop over T in numpy float64, [T, B] so that each step touches contiguous rows."""

    def call() -> tuple[Tensor, ...]:
        tensors = (x.rewards, x.values, x.mask)
        r, v, real = (t.double().cpu().numpy().T.copy() for t in tensors)
        advantages = np.empty_like(r)
        behind = getattr(x, "bootstrap", torch.zeros(len(x.mask))).double().cpu().numpy()
        running, following = np.zeros_like(r[0]), behind
        for t in range(len(r) - 1, -1, -1):
            delta = r[t] + x.gamma * following - v[t]
            running = (delta + x.gamma * x.lam * running) * real[t]
            following = np.where(real[t] > 0, v[t], following)
            advantages[t] = running
        device = x.rewards.device
        advantages, returns = advantages.T, (advantages + v * real).T
        return tuple(torch.from_numpy(a).float().to(device) for a in (advantages, returns))

    return call


def policy_loss(x: Any) -> Call:
    """The clipped surrogate, masked by a product."""
    new, old, advantages, mask = x.logprobs, x.old_logprobs, x.advantages, x.mask
    low, high = 1 - x.clip_range, 1 + x.clip_range

    def call() -> Any:
        ratio = torch.exp(new - old)
        losses = torch.max(-advantages * ratio, -advantages * ratio.clamp(low, high))
        return (losses * mask).sum() / mask.sum()

    return call


def value_loss(x: Any) -> Call:
    """The clipped squared error, masked by a product."""
    new, old, returns, mask, clip = x.values, x.old_values, x.returns, x.mask, x.clip_range

    def call() -> Any:
        clipped = old + (new - old).clamp(-clip, clip)
        losses = torch.max((new - returns).square(), (clipped - returns).square())
        return 0.5 * (losses * mask).sum() / mask.sum()

    return call


def dapo_loss(x: Any) -> Call:
    """Two clip ranges and a dual clip, masked by a product."""
    low, high = 1 - x.clip_low, 1 + x.clip_high

    def call() -> Any:
        ratio = torch.exp(x.logprobs - x.old_logprobs)
        losses = torch.max(-x.advantages * ratio, -x.advantages * ratio.clamp(low, high))
        held = torch.min(losses, -x.advantages * x.dual_clip)
        losses = torch.where(x.advantages < 0, held, losses)
        return (losses * x.mask).sum() / x.mask.sum()

    return call


def gspo_loss(x: Any) -> Call:
    """The stop-gradient form per token, then the mean of sequence means."""
    low, high = 1 - x.clip_low, 1 + x.clip_high

    def call() -> Any:
        lengths = x.mask.sum(1, keepdim=True)
        mean = ((x.logprobs - x.old_logprobs) * x.mask).sum(1, keepdim=True) / lengths
        ratio = torch.exp(x.logprobs - x.logprobs.detach() + mean.detach())
        a = x.advantages.unsqueeze(1)
        losses = torch.max(-a * ratio, -a * ratio.clamp(low, high))
        return ((losses * x.mask).sum(1, keepdim=True) / lengths).mean()

    return call


def cispo_loss(x: Any) -> Call:
    """A detached, clipped weight, masked by a product."""

    def call() -> Any:
        ratio = torch.exp(x.logprobs - x.old_logprobs).detach()
        weight = ratio.clamp(1 - x.clip_low, 1 + x.clip_high)
        return (-weight * x.advantages * x.logprobs * x.mask).sum() / x.mask.sum()

    return call


def linear_token_logprobs(x: Any) -> Call:
    """The logits of all rows in FP32, then log_softmax and a gather."""
    index = x.tokens.unsqueeze(-1)

    def call() -> Tensor:
        logits = x.hidden.float() @ x.weight.float().T / x.temperature
        return torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)

    return call


def token_mean(x: Any) -> Call:
    """Masked by a product."""
    return lambda: (x.values * x.mask).sum() / x.mask.sum()


def sequence_ratio(x: Any) -> Call:
    """exp of the masked mean, masked by a product."""
    mask: Tensor = x.mask
    return lambda: torch.exp(((x.logprobs - x.old_logprobs) * mask).sum(1) / mask.sum(1))


def importance_weights(x: Any) -> Call:
    """exp of the masked sum, truncated, at every real token."""
    mask: Tensor = x.mask

    def call() -> Tensor:
        total = ((x.train_logprobs - x.rollout_logprobs) * mask).sum(1, keepdim=True)
        return torch.exp(total).clamp(max=x.cap) * mask

    return call


def rloo_advantages(x: Any) -> Call:
    """The mean of the others, subtracted."""
    rewards: Tensor = x.rewards
    others = rewards.shape[1] - 1
    return lambda: rewards - (rewards.sum(1, keepdim=True) - rewards) / others


def dpo_loss(x: Any) -> Call:
    """-log sigmoid of the scaled margin."""

    def call() -> Tensor:
        policy = x.policy_chosen - x.policy_rejected
        reference = x.ref_chosen - x.ref_rejected
        return -F.logsigmoid(x.beta * (policy - reference)).mean()

    return call


def jsd(x: Any) -> Call:
    """Two KL divergences from the log of the mixture, in FP32."""

    def call() -> Tensor:
        student, teacher = (
            torch.log_softmax(z.float(), -1) for z in (x.student_logits, x.teacher_logits)
        )
        weights = torch.tensor([x.beta, 1 - x.beta], device=student.device).log()
        mixture = torch.logsumexp(torch.stack([teacher + weights[0], student + weights[1]]), 0)
        of_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True).sum(-1)
        of_student = F.kl_div(mixture, student, reduction="none", log_target=True).sum(-1)
        divergence: Tensor = x.beta * of_teacher + (1 - x.beta) * of_student
        return divergence

    return call
