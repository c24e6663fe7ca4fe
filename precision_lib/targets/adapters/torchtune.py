"""torchtune: ``torchtune.rlhf`` and its PPO loss.

``whiten`` is called with ``shift_mean=False``, the setting that removes the mean; the default adds
it again. ``estimate_advantages`` whitens before it returns, so that only its returns can be
compared; it wants zeros in padded rewards and values, as its recipe puts there, and gets them. The
policy loss is its loss with a value coefficient of 0, the value loss that with ratios of 1 and
advantages of 0, since the single losses come back without their graph. Its DPO loss is one number
a pair, of which its recipe takes the mean.
"""

from typing import Any

from torch import Tensor

from precision_lib.targets.adapters import logps, real_only
from precision_lib.targets.frameworks import framework

FRAMEWORK = framework("torchtune")
_torchtune = FRAMEWORK.function


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Any:
    return _torchtune("logits_to_logprobs")(logits, tokens, temperature)


def masked_mean(x: Tensor, mask: Tensor) -> Any:
    return _torchtune("masked_mean")(x, mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    return real_only(_torchtune("whiten")(x, mask, shift_mean=False), mask)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[None, Tensor]:
    _, returns = _torchtune("estimate_advantages")(
        real_only(values, mask), real_only(rewards, mask), gamma, lam, mask
    )
    return None, real_only(returns, mask)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Any:
    loss = _torchtune("PPOLoss")(clip_range, clip_range, 0.0)
    none = logprobs.new_zeros(1)
    return loss(old_logprobs, logprobs, advantages, none, none, none, mask, None)[0]


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Any:
    loss = _torchtune("PPOLoss")(clip_range, clip_range, 1.0)
    none = values.new_zeros(1)
    return loss(none, none, none, old_values, values, returns, None, mask)[0]


def dpo_loss(beta: float, **pairs: Tensor) -> Any:
    return _torchtune("DPOLoss")(beta)(**logps(pairs))[0].mean()
