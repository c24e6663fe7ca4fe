"""Wrong KL estimates: one mutation each, the rest as it should be.

The hazard. The estimators are one line each, and that line has been written with the wrong sign,
without its half, in bf16, and behind a clamp. ``catalogue`` says where each was seen.
d = policy - ref, both [B, T].
"""

import torch
from torch import Tensor

from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.rows import fp32_or_wider


def _log_ratio(policy: Tensor, ref: Tensor, dtype: torch.dtype | None) -> Tensor:
    """d in ``dtype``, by default FP32 or wider."""
    wanted = dtype or fp32_or_wider(policy, ref)
    return policy.to(wanted) - ref.to(wanted)


def k3_as_textbook(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """exp(-d) - 1 + d as it is written: two numbers of size 1 for one of size d^2."""
    if estimator != "k3":
        return kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    d = _log_ratio(policy_logprobs, ref_logprobs, dtype)
    return torch.exp(-d) - 1 + d


def k3_in_input_dtype(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """exp(-d) - 1 + d with every operation in the format of the log-probs, then made FP32."""
    if estimator != "k3":
        return kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    d = policy_logprobs - ref_logprobs
    wanted = dtype or fp32_or_wider(policy_logprobs, ref_logprobs)
    return (torch.exp(-d) - 1 + d).to(wanted)


def k3_with_the_other_sign(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """exp(d) - 1 - d: the formula for ref - policy, given policy - ref."""
    if estimator == "k3":
        policy_logprobs, ref_logprobs = ref_logprobs, policy_logprobs
    return kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)


def k3_clamped(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """d is clamped to +-20 before the exp and the result to 10 behind it."""
    if estimator != "k3":
        return kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    d = _log_ratio(policy_logprobs, ref_logprobs, dtype).clamp(-20, 20)
    return kl_penalty(d, torch.zeros_like(d), "k3", dtype).clamp(max=10)


def k3_clamped_after_exp(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The ratio is clamped behind the exp that overflowed: the gradient is 0 * inf."""
    if estimator != "k3":
        return kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    d = _log_ratio(policy_logprobs, ref_logprobs, dtype)
    ratio = torch.exp(-d).clamp(max=torch.finfo(d.dtype).max)
    return ratio - 1 + d


def k2_without_its_half(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """d^2 instead of d^2 / 2."""
    result = kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    return 2 * result if estimator == "k2" else result


def every_estimator_is_k3(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A chain of ifs without elif: whatever was asked for, the last one is computed."""
    return kl_penalty(policy_logprobs, ref_logprobs, "k3", dtype)


def log_ratio_in_input_dtype(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """d is subtracted in the format of the log-probs; the rest is FP32."""
    d = policy_logprobs - ref_logprobs
    wanted = dtype or fp32_or_wider(policy_logprobs, ref_logprobs)
    return kl_penalty(d, torch.zeros_like(d), estimator, wanted)


def log_ratio_of_probabilities(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """d = log(p / q) from probabilities, which underflow to 0 / 0."""
    wanted = dtype or fp32_or_wider(policy_logprobs, ref_logprobs)
    p, q = policy_logprobs.to(wanted).exp(), ref_logprobs.to(wanted).exp()
    d = torch.log(p / q)
    return kl_penalty(d, torch.zeros_like(d), estimator, wanted)


def reference_in_bf16(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The reference's log-probs pass through bf16, the policy's do not: they never agree."""
    wanted = dtype or fp32_or_wider(policy_logprobs, ref_logprobs)
    return kl_penalty(policy_logprobs, ref_logprobs.bfloat16(), estimator, wanted)


def kl_left_in_input_dtype(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The result keeps the format of the log-probs, rounded to it once."""
    result = kl_penalty(policy_logprobs, ref_logprobs, estimator)
    return result.to(dtype or policy_logprobs.dtype)


def kl_given_up_for_a_nan(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A NaN anywhere, be it in padding, makes the whole batch's KL 0."""
    result = kl_penalty(policy_logprobs, ref_logprobs, estimator, dtype)
    return torch.zeros_like(result) if result.isnan().any() else result
