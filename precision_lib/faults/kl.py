"""Wrong KL estimates: one mutation each, the rest as it should be.

``catalogue`` says where each was seen. d = policy - ref, both [B, T].
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.logit_pieces import fp32_or_wider


@dataclass(frozen=True)
class Kl(Arguments[Tensor]):
    """The arguments of :func:`kl_penalty`."""

    policy_logprobs: Tensor
    ref_logprobs: Tensor
    estimator: str
    dtype: torch.dtype | None = None
    original = staticmethod(kl_penalty)

    @property
    def wanted(self) -> torch.dtype:
        """The format of the result."""
        return self.dtype or fp32_or_wider(self.policy_logprobs, self.ref_logprobs)

    def log_ratio(self) -> Tensor:
        """d in the format of the result."""
        return self.policy_logprobs.to(self.wanted) - self.ref_logprobs.to(self.wanted)

    def of_log_ratio(self, d: Tensor) -> Tensor:
        """The right estimate for another log-ratio d."""
        return self.right(policy_logprobs=d, ref_logprobs=torch.zeros_like(d), dtype=self.wanted)


def _fault_of_k3(wrong: Callable[[Kl], Tensor]) -> Callable[..., Tensor]:
    """A fault of k3; the other estimators are right."""

    @functools.wraps(wrong)
    def k3_alone(x: Kl) -> Tensor:
        return wrong(x) if x.estimator == "k3" else x.right()

    return fault_of(Kl)(k3_alone)


@_fault_of_k3
def k3_as_textbook(x: Kl) -> Tensor:
    """exp(-d) - 1 + d as it is written: two numbers of size 1 for one of size d^2."""
    d = x.log_ratio()
    return torch.exp(-d) - 1 + d


@_fault_of_k3
def k3_in_input_dtype(x: Kl) -> Tensor:
    """exp(-d) - 1 + d with every operation in the format of the log-probs, then made FP32."""
    d = x.policy_logprobs - x.ref_logprobs
    return (torch.exp(-d) - 1 + d).to(x.wanted)


@_fault_of_k3
def k3_with_the_other_sign(x: Kl) -> Tensor:
    """exp(d) - 1 - d: the formula for ref - policy, given policy - ref."""
    return x.right(policy_logprobs=x.ref_logprobs, ref_logprobs=x.policy_logprobs)


@_fault_of_k3
def k3_clamped(x: Kl) -> Tensor:
    """d is clamped to +-20 before the exp and the result to 10 behind it."""
    return x.of_log_ratio(x.log_ratio().clamp(-20, 20)).clamp(max=10)


@_fault_of_k3
def k3_clamped_after_exp(x: Kl) -> Tensor:
    """The ratio is clamped behind the exp that overflowed: the gradient is 0 * inf."""
    d = x.log_ratio()
    return torch.exp(-d).clamp(max=torch.finfo(d.dtype).max) - 1 + d


@fault_of(Kl)
def k2_without_its_half(x: Kl) -> Tensor:
    """d^2 instead of d^2 / 2."""
    return 2 * x.right() if x.estimator == "k2" else x.right()


@fault_of(Kl)
def every_estimator_is_k3(x: Kl) -> Tensor:
    """A chain of ifs without elif: whatever was asked for, the last one is computed."""
    return x.right(estimator="k3")


@fault_of(Kl)
def log_ratio_in_input_dtype(x: Kl) -> Tensor:
    """d is subtracted in the format of the log-probs; the rest is FP32."""
    return x.of_log_ratio(x.policy_logprobs - x.ref_logprobs)


@fault_of(Kl)
def log_ratio_of_probabilities(x: Kl) -> Tensor:
    """d = log(p / q) from probabilities, which underflow to 0 / 0."""
    p, q = x.policy_logprobs.to(x.wanted).exp(), x.ref_logprobs.to(x.wanted).exp()
    return x.of_log_ratio(torch.log(p / q))


@fault_of(Kl)
def reference_in_bf16(x: Kl) -> Tensor:
    """The reference's log-probs pass through bf16, the policy's do not: they never agree."""
    return x.right(ref_logprobs=x.ref_logprobs.bfloat16(), dtype=x.wanted)


@fault_of(Kl)
def kl_left_in_input_dtype(x: Kl) -> Tensor:
    """The result keeps the format of the log-probs, rounded to it once."""
    return x.right(dtype=None).to(x.dtype or x.policy_logprobs.dtype)


@fault_of(Kl)
def kl_given_up_for_a_nan(x: Kl) -> Tensor:
    """A NaN anywhere, be it in padding, makes the whole batch's KL 0."""
    result = x.right()
    return torch.zeros_like(result) if result.isnan().any() else result
