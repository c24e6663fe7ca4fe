"""The arithmetic of a trainer, written as it often is; the suite finds something in each."""

import torch
from torch import Tensor


def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def kl_estimate(logp: Tensor, ref: Tensor, kind: str) -> Tensor:
    d = ref - logp
    return {"k1": -d, "k2": d.square() / 2, "k3": d.exp() - d - 1}[kind]


def mean_over_tokens(x: Tensor, attention: Tensor) -> Tensor:
    return (x * attention).sum() / attention.sum()


def normalise_rewards(rewards: Tensor, samples: int) -> Tensor:
    groups = rewards.view(-1, samples)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-6)).flatten()
