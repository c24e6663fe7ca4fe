"""verl: ``verl.utils.torch_functional``, its fused LM head, and ``verl.trainer.ppo``.

Masks are int64, as its data loader makes them; its trainer gives bool ones to the losses, which
changes no result here. ``compute_gae_advantage_return`` whitens before it returns, so that only its
returns can be compared. Dual clipping is set beyond reach where none is asked for, and so is the
lower bound of the weights that ``mode="mask"`` keeps. With flash-attn installed its log-probs come
from a Triton kernel; here the path without is called. Its losses are registered for a mode of
aggregation; each gets its default one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib.targets.adapters import real_only
from precision_lib.targets.frameworks import framework

FRAMEWORK = framework("verl")
_verl = FRAMEWORK.function
#: A bound of dual clipping that no ratio reaches: exp(20) is its largest.
NO_DUAL_CLIP = 1e30
#: It has no geometric mean for weights, only for rejection.
ONLY = {"importance_weights": {"level": ("token", "sequence")}}


def token_logprobs(logits: Tensor, tokens: Tensor) -> Any:
    return _verl("logprobs_from_logits")(logits, tokens)


def entropy(logits: Tensor) -> Any:
    return _verl("entropy_from_logits")(logits)


def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float
) -> Any:
    return _verl("FusedLinearForPPO")()(hidden, weight, tokens, temperature)[0]


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
    return _of_groups("compute_grpo_outcome_advantage", rewards)


def rloo_advantages(rewards: Tensor) -> Any:
    return _of_groups("compute_rloo_outcome_advantage", rewards)


def _of_groups(function: str, rewards: Tensor) -> Any:
    groups, samples = rewards.shape
    scores = rewards.reshape(-1, 1)
    ones = torch.ones(scores.shape, dtype=torch.int64, device=scores.device)
    index = np.repeat(np.arange(groups), samples)
    advantages, _ = _verl(function)(scores, ones, index)
    return advantages.view(groups, samples)


def aggregate(values: Tensor, mask: Tensor, mode: str, denominator: float | None) -> Any:
    names = {"token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean"}
    if mode == "constant":
        options: Mapping[str, float | None] = {
            "global_batch_size": 1,
            "loss_scale_factor": denominator,
        }
        name = "seq-mean-token-sum-norm"
    else:
        options = _counted(denominator, "batch_num_tokens" if mode == "token_mean" else None)
        name = names.get(mode, "seq-mean-token-sum")
    return _verl("agg_loss")(values, mask.to(torch.int64), name, **options)


def _counted(denominator: float | None, name: str | None = None) -> dict[str, float]:
    """What ``agg_loss`` is told about the whole batch."""
    return {} if denominator is None else {name or "global_batch_size": denominator}


def importance_weights(
    train_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    level: str,
    mode: str,
    cap: float,
) -> Any:
    threshold = cap if mode == "truncate" else f"1e-300_{cap!r}"
    weights, *_ = _verl("compute_rollout_correction_and_rejection_mask")(
        train_logprobs, rollout_logprobs, mask.to(torch.int64), level, threshold
    )
    return weights.batch["rollout_is_weights"]


def policy_loss(clip_range: float, denominator: float | None = None, **batch: Tensor) -> Any:
    return dapo_loss(denominator, clip_low=clip_range, clip_high=clip_range, **batch)


def dapo_loss(denominator: float | None = None, **given: Any) -> Any:
    return _loss("vanilla", _counted(denominator, "batch_num_tokens"), **given)


def cispo_loss(denominator: float | None = None, **given: Any) -> Any:
    return _loss("cispo", _counted(denominator, "batch_num_tokens"), **given)


def gspo_loss(
    advantages: Tensor, mask: Tensor, denominator: float | None = None, **given: Any
) -> Any:
    each = advantages[:, None].expand(mask.shape)
    return _loss("gspo", _counted(denominator), advantages=each, mask=mask, **given)


def _loss(
    name: str,
    counted: dict[str, Any],
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Any:
    config = _verl("ActorConfig")(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=clip_low,
        clip_ratio_high=clip_high,
        clip_ratio_c=NO_DUAL_CLIP if dual_clip is None else dual_clip,
        global_batch_info=counted,
    )
    function, ints = _verl(f"compute_policy_loss_{name}"), mask.to(torch.int64)
    return function(old_logprobs, logprobs, advantages, ints, config=config)[0]


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: float | None = None,
) -> Any:
    loss, counted = _verl("compute_value_loss"), _counted(denominator, "batch_num_tokens")
    return loss(values, returns, old_values, mask.to(torch.int64), clip_range, **counted)[0]
