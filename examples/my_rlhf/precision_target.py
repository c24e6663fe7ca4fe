"""What is tested of my_rlhf: its own functions under the suite's names; no upcast, no clean-up."""

import torch
from torch import Tensor

from my_rlhf import trainer


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return trainer.logprobs_of(logits, tokens)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    return trainer.kl_estimate(policy_logprobs, ref_logprobs, estimator)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return trainer.mean_over_tokens(x, mask.to(torch.int64))


def group_advantages(rewards: Tensor) -> Tensor:
    flat = trainer.normalise_rewards(rewards.flatten(), samples=rewards.shape[1])
    return flat.view(rewards.shape)
