"""torchtune: ``torchtune.rlhf`` and its PPO loss.

``whiten`` is called with ``shift_mean=False``, the setting that removes the mean; the default adds
it again. ``estimate_advantages`` whitens before it returns, so that only its returns can be
compared; it wants zeros in padded rewards and values, as its recipe puts there, and gets them. The
policy loss is its loss with a value coefficient of 0, the value loss that with ratios of 1 and
advantages of 0, since the single losses come back without their graph.
"""

from typing import Any

from torch import Tensor

from precision_lib.targets.adapters import real_only
from precision_lib.targets.frameworks import Framework, load

FRAMEWORK = Framework(
    "torchtune",
    "0.6.1",
    "0.7",
    modules=("torchtune.rlhf", "torchtune.rlhf.loss"),
    offered={
        "token_logprobs": "torchtune.rlhf.logits_to_logprobs",
        "masked_mean": "torchtune.rlhf.masked_mean",
        "whiten": "torchtune.rlhf.whiten, shift_mean=False",
        "gae": "torchtune.rlhf.estimate_advantages, its returns",
        "policy_loss": "torchtune.rlhf.loss.PPOLoss, value_coeff=0",
        "value_loss": "torchtune.rlhf.loss.PPOLoss, value_coeff=1 and no advantages",
    },
    not_offered={
        "entropy": "none",
        "kl_penalty": "k1 alone, inside get_rewards_ppo",
        "group_advantages": "inside a development recipe",
    },
    stubs=("torchao", "sentencepiece", "tiktoken", "torchvision", "kagglehub", "blobfile", "PIL"),
    needs=("datasets", "pyarrow", "pandas", "dill", "multiprocess", "xxhash", "omegaconf"),
)


def _torchtune(name: str) -> Any:
    return load(FRAMEWORK)[name]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Any:
    return _torchtune("logits_to_logprobs")(logits, tokens)


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
