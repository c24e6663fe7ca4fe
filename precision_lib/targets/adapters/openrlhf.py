"""OpenRLHF: ``openrlhf.models`` and the advantages of its experience maker.

Masks are int64, as its data loader makes them. Group advantages are made by
``compute_advantages_and_returns``, which is called with a stand-in for the experience maker: one
token a response, a KL of 0, ``estimator="group_norm"`` and the reward clip of +-10 that its command
line sets and cannot switch off; it cuts the normalised rewards. ``compute_entropy`` is compiled
where its trainer calls it; here torch runs the same lines uncompiled, since compiling for each
shape takes minutes.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from precision_lib.targets.frameworks import framework, load

FRAMEWORK = framework("openrlhf")
#: The default of --reward.clip_range.
REWARD_CLIP = (-10.0, 10.0)


def _openrlhf(name: str) -> Any:
    return load(FRAMEWORK)[name]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Any:
    return _openrlhf("log_probs_from_logits")(logits, tokens)


def entropy(logits: Tensor) -> Any:
    with torch.compiler.set_stance("force_eager"):
        return _openrlhf("compute_entropy")(logits)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Any:
    return _openrlhf("compute_approx_kl")(policy_logprobs, ref_logprobs, kl_estimator=estimator)


def masked_mean(x: Tensor, mask: Tensor) -> Any:
    return _openrlhf("masked_mean")(x, mask.to(torch.int64))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Any:
    function = _openrlhf("RemoteExperienceMaker").get_advantages_and_returns
    return function(None, values, rewards, mask.to(torch.int64), gamma, lam)


def group_advantages(rewards: Tensor) -> Any:
    groups, samples = rewards.shape
    count = groups * samples
    experience = SimpleNamespace(
        rewards=rewards.reshape(-1),
        index=list(range(count)),
        kl=torch.zeros(count, 1, device=rewards.device),  # float32, as compute_approx_kl makes it
        action_mask=torch.ones(count, 1, dtype=torch.int64, device=rewards.device),
        info={},
    )
    options = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=samples),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator="group_norm", gamma=1.0)),
        reward=SimpleNamespace(clip_range=REWARD_CLIP),
    )
    maker = _openrlhf("RemoteExperienceMaker")
    stand_in = SimpleNamespace(
        strategy=SimpleNamespace(args=options),
        advantage_estimator="group_norm",
        kl_ctl=SimpleNamespace(value=0.0),
        get_cumulative_returns=lambda *given: maker.get_cumulative_returns(None, *given),
    )
    (done,) = maker.compute_advantages_and_returns(stand_in, [experience])
    return done.advantages.view(groups, samples)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Any:
    loss = _openrlhf("PolicyLoss")(clip_range, clip_range)
    return loss(logprobs, old_logprobs, advantages, mask.to(torch.int64))[0]


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Any:
    return _openrlhf("ValueLoss")(clip_range)(values, old_values, returns, mask.to(torch.int64))
