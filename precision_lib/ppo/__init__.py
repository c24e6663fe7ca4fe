"""The PPO core: small pure functions, FP32 or better unless a format is asked for on purpose.

The functions of the target interface, by their names; the module is the default target.
"""

from precision_lib.ppo.advantages import gae, group_advantages, rloo_advantages
from precision_lib.ppo.aggregation import aggregate
from precision_lib.ppo.divergences import jsd
from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.linear_logprobs import linear_token_logprobs
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.ppo.losses import policy_loss, value_loss
from precision_lib.ppo.masked import masked_mean, whiten
from precision_lib.ppo.objectives import cispo_loss, dapo_loss, gspo_loss
from precision_lib.ppo.policy_entropy import entropy
from precision_lib.ppo.preferences import dpo_loss
from precision_lib.ppo.ratios import importance_weights, sequence_ratio

__all__ = [
    "aggregate",
    "cispo_loss",
    "dapo_loss",
    "dpo_loss",
    "entropy",
    "gae",
    "group_advantages",
    "gspo_loss",
    "importance_weights",
    "jsd",
    "kl_penalty",
    "linear_token_logprobs",
    "masked_mean",
    "policy_loss",
    "rloo_advantages",
    "sequence_ratio",
    "token_logprobs",
    "value_loss",
    "whiten",
]
