"""The PPO core: small pure functions, FP32 or better unless a format is asked for on purpose.

The nine functions of the target interface, by their names; the module is the default target.
"""

from precision_lib.ppo.advantages import gae, group_advantages
from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.ppo.losses import policy_loss, value_loss
from precision_lib.ppo.masked import masked_mean, whiten
from precision_lib.ppo.policy_entropy import entropy

__all__ = [
    "entropy",
    "gae",
    "group_advantages",
    "kl_penalty",
    "masked_mean",
    "policy_loss",
    "token_logprobs",
    "value_loss",
    "whiten",
]
