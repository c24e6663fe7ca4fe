"""verl: ``verl.utils.torch_functional`` and ``verl.trainer.ppo.core_algos``.

Masks are int64, as its data loader makes them; its trainer gives bool ones to the losses, which
changes no result here. ``compute_gae_advantage_return`` whitens before it
returns, so that only its returns can be compared. Dual clipping is set beyond reach. With
flash-attn installed its log-probs come from a Triton kernel; here the path without is called.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib.targets.adapters import real_only
from precision_lib.targets.frameworks import framework, load

FRAMEWORK = framework("verl")
#: A bound of dual clipping that no ratio reaches: exp(20) is its largest.
NO_DUAL_CLIP = 1e30


def _verl(name: str) -> Any:
    return load(FRAMEWORK)[name]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Any:
    return _verl("logprobs_from_logits")(logits, tokens)


def entropy(logits: Tensor) -> Any:
    return _verl("entropy_from_logits")(logits)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Any:
    return _verl("kl_penalty")(policy_logprobs, ref_logprobs, estimator)


def masked_mean(x: Tensor, mask: Tensor) -> Any:
    return _verl("masked_mean")(x, mask.to(torch.int64))


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    return real_only(_verl("masked_whiten")(x, mask.to(torch.int64)), mask)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[None, Tensor]:
    _, returns = _verl("compute_gae_advantage_return")(
        rewards, values, mask.to(torch.int64), gamma, lam
    )
    return None, real_only(returns, mask)


def group_advantages(rewards: Tensor) -> Any:
    groups, samples = rewards.shape
    scores = rewards.reshape(-1, 1)
    ones = torch.ones(scores.shape, dtype=torch.int64, device=scores.device)
    index = np.repeat(np.arange(groups), samples)
    advantages, _ = _verl("compute_grpo_outcome_advantage")(scores, ones, index)
    return advantages.view(groups, samples)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Any:
    config = SimpleNamespace(
        clip_ratio=clip_range,
        clip_ratio_low=None,
        clip_ratio_high=None,
        global_batch_info={},
        get=lambda name, default: NO_DUAL_CLIP if name == "clip_ratio_c" else default,
    )
    loss, _ = _verl("compute_policy_loss_vanilla")(
        old_logprobs, logprobs, advantages, mask.to(torch.int64), config=config
    )
    return loss


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Any:
    loss, _ = _verl("compute_value_loss")(
        values, returns, old_values, mask.to(torch.int64), clip_range
    )
    return loss
