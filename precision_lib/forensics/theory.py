"""What the logits of a policy and the reference let one predict, without a log-softmax of the core.

[n, T, V] logits to [n, T] figures per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib.ppo import kl


@dataclass(frozen=True)
class Theory:
    """What the FP32 logits of a policy and the reference let one predict, in float64; each [M].

    Attributes:
        policy_logprob, reference_logprob: log-prob of the token.
        rounded_move: policy minus reference log-prob after rounding all logits to bf16, exact
            otherwise: what a bf16 KL has left to round once more.
        entropy, surprise_variance: of the reference's distribution: mean and variance of
            -log q under q, which is what the log-prob of a sampled token must scatter about.
    """

    policy_logprob: Tensor
    reference_logprob: Tensor
    rounded_move: Tensor
    entropy: Tensor
    surprise_variance: Tensor


def pair_kl(policy: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """KL(policy || reference) over the whole vocabulary, nats."""
    return {"kl": kl.full_kl(policy, reference)}


def pair_theory(policy: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The fields of :class:`Theory`; shares no log-softmax with the core."""
    index = tokens.unsqueeze(-1)

    def exact(logits: Tensor) -> Tensor:
        wide = logits.double()
        return wide.gather(-1, index).squeeze(-1) - torch.logsumexp(wide, -1)

    log_q = reference.double() - torch.logsumexp(reference.double(), -1, keepdim=True)
    q = log_q.exp()
    surprise = torch.where(q > 0, -log_q, torch.zeros_like(q))
    entropy = (q * surprise).sum(-1)
    return {
        "policy_logprob": exact(policy),
        "reference_logprob": exact(reference),
        "rounded_move": exact(policy.bfloat16()) - exact(reference.bfloat16()),
        "entropy": entropy,
        "surprise_variance": (q * (surprise - entropy.unsqueeze(-1)) ** 2).sum(-1),
    }
