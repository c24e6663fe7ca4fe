"""OpenRLHF: ``openrlhf.models`` and the advantages of its experience maker.

Masks are int64, as its data loader makes them. Advantages of groups are made by
``compute_advantages_and_returns``, which is called with a stand-in for the experience maker: one
token a response, a KL of 0, ``estimator="group_norm"`` or ``"rloo"`` and the reward clip of +-10
that its command line sets and cannot switch off; it cuts the normalised rewards.
``compute_entropy`` is compiled where its trainer calls it; here torch runs the same lines
uncompiled, since compiling for each shape takes minutes. ``log_probs_from_logits`` divides the
logits by the temperature in place, which its caller hands over: it gets a copy.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from precision_lib.targets.adapters import logps, real_only
from precision_lib.targets.frameworks import framework

FRAMEWORK = framework("openrlhf")
_openrlhf = FRAMEWORK.function
#: The default of --reward.clip_range.
REWARD_CLIP = (-10.0, 10.0)
ONLY = {"aggregate": {"mode": ("token_mean", "sequence_mean")}}


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Any:
    owned = logits if temperature == 1 else logits.clone()
    return _openrlhf("log_probs_from_logits")(owned, tokens, temperature)


def entropy(logits: Tensor) -> Any:
    with torch.compiler.set_stance("force_eager"):
        return _openrlhf("compute_entropy")(logits)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Any:
    return _openrlhf("compute_approx_kl")(policy_logprobs, ref_logprobs, kl_estimator=estimator)


def masked_mean(x: Tensor, mask: Tensor) -> Any:
    return _openrlhf("masked_mean")(x, mask.to(torch.int64))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Any:
    function = _openrlhf("RemoteExperienceMaker").get_advantages_and_returns
    both = function(None, values, rewards, mask.to(torch.int64), gamma, lam)
    return tuple(real_only(x, mask) for x in both)


def group_advantages(rewards: Tensor) -> Any:
    return _of_groups(rewards, "group_norm")


def rloo_advantages(rewards: Tensor) -> Any:
    return _of_groups(rewards, "rloo")


def _of_groups(rewards: Tensor, estimator: str) -> Any:
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
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=1.0)),
        reward=SimpleNamespace(clip_range=REWARD_CLIP),
    )
    maker = _openrlhf("RemoteExperienceMaker")
    stand_in = SimpleNamespace(
        strategy=SimpleNamespace(args=options),
        advantage_estimator=estimator,
        kl_ctl=SimpleNamespace(value=0.0),
        get_cumulative_returns=lambda *given: maker.get_cumulative_returns(None, *given),
    )
    (done,) = maker.compute_advantages_and_returns(stand_in, [experience])
    return done.advantages.view(groups, samples)


def aggregate(values: Tensor, mask: Tensor, mode: str, denominator: float | None) -> Any:
    by_token = mode == "token_mean"
    name = "batch_num_tokens" if by_token else "global_batch_size"
    count = {} if denominator is None else {name: denominator}
    return _openrlhf("aggregate_loss")(values, mask.to(torch.int64), by_token, **count)


def policy_loss(clip_range: float, denominator: float | None = None, **batch: Tensor) -> Any:
    return dapo_loss(denominator, clip_low=clip_range, clip_high=clip_range, **batch)


def dapo_loss(denominator: float | None = None, **given: Any) -> Any:
    return _loss("ppo", {"batch_num_tokens": denominator}, **given)


def gspo_loss(
    advantages: Tensor, mask: Tensor, denominator: float | None = None, **given: Any
) -> Any:
    each = advantages[:, None].expand(mask.shape)
    return _loss("gspo", {"global_batch_size": denominator}, advantages=each, mask=mask, **given)


def _loss(
    kind: str,
    counted: dict[str, Any],
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Any:
    loss = _openrlhf("PolicyLoss")(clip_low, clip_high, dual_clip, policy_loss_type=kind)
    return loss(logprobs, old_logprobs, advantages, mask.to(torch.int64), **counted)[0]


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: float | None = None,
) -> Any:
    loss, ints = _openrlhf("ValueLoss")(clip_range), mask.to(torch.int64)
    return loss(values, old_values, returns, ints, batch_num_tokens=denominator)


def dpo_loss(beta: float, **pairs: Tensor) -> Any:
    return _openrlhf("DPOLoss")(beta)(**logps(pairs))[0]
