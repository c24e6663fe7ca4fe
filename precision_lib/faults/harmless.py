"""Changes that break nothing: the same mathematics in another order, or with more digits.

Each is a refactoring that gives other last bits, and that the gate has to let pass.
B sequences, T tokens, V vocabulary, G groups, K samples.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.faults.arguments import fault_of
from precision_lib.faults.gae import Gae, Pair
from precision_lib.faults.kl import Kl
from precision_lib.faults.losses import PolicyLoss, ValueLoss
from precision_lib.models.reward_model import score_tokens
from precision_lib.models.value_head import predict_values
from precision_lib.ppo.advantages import group_advantages
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.ppo.masked import masked_mean, whiten
from precision_lib.ppo.policy_entropy import entropy
from precision_lib.scoring.forward import trunk


def vocabulary_summed_from_the_back(
    logits: Tensor, tokens: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """The vocabulary is summed in the opposite order."""
    return token_logprobs(logits.flip(-1), logits.shape[-1] - 1 - tokens, dtype)


def entropy_summed_from_the_back(logits: Tensor) -> Tensor:
    """The vocabulary is summed in the opposite order."""
    return entropy(logits.flip(-1))


@fault_of(Kl)
def kl_in_float64(x: Kl) -> Tensor:
    """The estimator is computed in float64 and rounded to FP32, where no format was asked for."""
    if x.dtype is not None:
        return x.right()
    policy, ref = x.policy_logprobs.double(), x.ref_logprobs.double()
    return x.right(policy_logprobs=policy, ref_logprobs=ref).to(x.wanted)


def mean_in_float64(x: Tensor, mask: Tensor) -> Tensor:
    """Sum and quotient are computed in float64 and rounded to FP32."""
    return masked_mean(x.double(), mask).to(fp32_or_wider(x))


def whitened_in_float64(x: Tensor, mask: Tensor) -> Tensor:
    """Mean, deviation and quotient are computed in float64 and rounded to FP32."""
    return whiten(x.double(), mask).to(fp32_or_wider(x))


@fault_of(Gae)
def gae_in_float64(x: Gae) -> Pair:
    """The recursion runs in float64 and is rounded to FP32."""
    advantages, returns = x.right(rewards=x.rewards.double(), values=x.values.double())
    return advantages.to(x.wanted), returns.to(x.wanted)


def groups_from_the_back(rewards: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The samples of a group are summed in the opposite order."""
    return group_advantages(rewards.flip(-1), dtype).flip(-1)


def _from_the_back(x: PolicyLoss | ValueLoss) -> Tensor:
    tensors = {name: value for name, value in vars(x).items() if isinstance(value, Tensor)}
    return x.right(**{name: tensor.flip(0) for name, tensor in tensors.items()})


@fault_of(PolicyLoss)
def policy_loss_from_the_back(x: PolicyLoss) -> Tensor:
    """The sequences are summed in the opposite order: the policy's."""
    return _from_the_back(x)


@fault_of(ValueLoss)
def value_loss_from_the_back(x: ValueLoss) -> Tensor:
    """The sequences are summed in the opposite order: the values'."""
    return _from_the_back(x)


def one_sequence_at_a_time(model: Any, tokens: Tensor) -> Tensor:
    """The trunk sees micro-batches of one sequence."""
    return torch.cat([trunk(model, row) for row in tokens.split(1)])


def head_summed_from_the_back(hidden: Tensor, weight: Tensor, bias: Tensor, fmt: str) -> Tensor:
    """The hidden dimension is summed in the opposite order."""
    return predict_values(hidden.flip(-1), weight.flip(-1), bias, fmt)


def scores_two_bits_short(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """FP32 scores are rounded to 22 significant bits."""
    scores = score_tokens(model, tokens, lengths)
    if scores.dtype != torch.float32:
        return scores
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp((mantissa * 2**22).round() * 2.0**-22, exponent)
