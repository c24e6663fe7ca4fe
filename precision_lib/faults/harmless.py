"""Changes that break nothing: the same mathematics in another order, or with more digits.

The hazard. A gate that turns red when somebody reorders a sum is in the way of every refactoring,
and is taken out. These are such refactorings; each gives other last bits, and nobody may notice.
B sequences, T tokens, V vocabulary, G groups, K samples.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.models import reward_model, value_head
from precision_lib.ppo import advantages, kl, logprobs, losses, masked, policy_entropy
from precision_lib.ppo.rows import fp32_or_wider
from precision_lib.trajectories import teacher_forcing

# The originals, taken before anything is planted.
_token_logprobs = logprobs.token_logprobs
_entropy = policy_entropy.entropy
_kl_penalty = kl.kl_penalty
_masked_mean = masked.masked_mean
_whiten = masked.whiten
_gae = advantages.gae
_group_advantages = advantages.group_advantages
_policy_loss = losses.policy_loss
_value_loss = losses.value_loss
_trunk = teacher_forcing.trunk
_predict_values = value_head.predict_values
_score_tokens = reward_model.score_tokens


def vocabulary_summed_from_the_back(
    logits: Tensor, tokens: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """The vocabulary is summed in the opposite order."""
    return _token_logprobs(logits.flip(-1), logits.shape[-1] - 1 - tokens, dtype)


def entropy_summed_from_the_back(logits: Tensor) -> Tensor:
    """The vocabulary is summed in the opposite order."""
    return _entropy(logits.flip(-1))


def kl_in_float64(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The estimator is computed in float64 and rounded to FP32, where no format was asked for."""
    if dtype is not None:
        return _kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    wide = _kl_penalty(policy_logprobs.double(), ref_logprobs.double(), estimator)
    return wide.to(fp32_or_wider(policy_logprobs, ref_logprobs))


def mean_in_float64(x: Tensor, mask: Tensor) -> Tensor:
    """Sum and quotient are computed in float64 and rounded to FP32."""
    return _masked_mean(x.double(), mask).to(fp32_or_wider(x))


def whitened_in_float64(x: Tensor, mask: Tensor) -> Tensor:
    """Mean, deviation and quotient are computed in float64 and rounded to FP32."""
    return _whiten(x.double(), mask).to(fp32_or_wider(x))


def gae_in_float64(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """The recursion runs in float64 and is rounded to FP32."""
    narrow = fp32_or_wider(rewards, values)
    both = _gae(rewards.double(), values.double(), mask, gamma, lam)
    return both[0].to(narrow), both[1].to(narrow)


def groups_from_the_back(rewards: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The samples of a group are summed in the opposite order."""
    return _group_advantages(rewards.flip(-1), dtype).flip(-1)


def policy_loss_from_the_back(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The sequences are summed in the opposite order: the policy's."""
    return _policy_loss(
        logprobs.flip(0), old_logprobs.flip(0), advantages.flip(0), mask.flip(0), clip_range
    )


def value_loss_from_the_back(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The sequences are summed in the opposite order: the values'."""
    return _value_loss(
        values.flip(0), old_values.flip(0), returns.flip(0), mask.flip(0), clip_range
    )


def one_sequence_at_a_time(model: Any, tokens: Tensor) -> Tensor:
    """The trunk sees micro-batches of one sequence."""
    return torch.cat([_trunk(model, row) for row in tokens.split(1)])


def head_summed_from_the_back(hidden: Tensor, weight: Tensor, bias: Tensor, fmt: str) -> Tensor:
    """The hidden dimension is summed in the opposite order."""
    return _predict_values(hidden.flip(-1), weight.flip(-1), bias, fmt)


def scores_two_bits_short(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """FP32 scores are rounded to 22 significant bits."""
    scores = _score_tokens(model, tokens, lengths)
    if scores.dtype != torch.float32:
        return scores
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp((mantissa * 2**22).round() * 2.0**-22, exponent)
