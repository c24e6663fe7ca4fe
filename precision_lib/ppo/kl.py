"""KL penalty estimators on sampled tokens.

The hazard. With d = log pi - log pi_ref, the k3 estimator exp(-d) - 1 + d is about d^2 / 2: near
the reference it subtracts two numbers of size 1 to get one of size 1e-8, and every RLHF framework
read so far writes it that way. In FP32 the textbook form has an error of the size of its value at
|d| = 3e-4; in bf16 at |d| = 0.06, where it also comes out negative, which KL never is. The form
here has a small *relative* error for every d, in every format.

B sequences, T tokens.
"""

import math

import torch
from torch import Tensor

#: Below this |d| the series is used. expm1(x) - x loses log2(2/|x|) = 3 bits at 1/4, and the series
#: of x^2/2! through x^12/12! is exact to 2 (1/4)^11 / 13! = 8e-17 of the value, also for float64.
_SERIES_BELOW = 0.25
_COEFFICIENTS = tuple(1 / math.factorial(k) for k in range(12, 1, -1))


def kl_penalty(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Per-token KL estimate from the log-ratio d = policy - ref.

    ``"k1"``: d. ``"k2"``: d^2 / 2. ``"k3"``: exp(-d) - 1 + d, never negative.

    Args:
        policy_logprobs, ref_logprobs: [B, T], any floating-point format.
        estimator: one of k1, k2, k3 (Schulman, "Approximating KL divergence", 2020).
        dtype: the format of the arithmetic; inputs are cast to it first and every operation
            rounds to it.

    Returns:
        [B, T] of ``dtype``.

    Raises:
        ValueError: for different shapes or an unknown estimator.
    """
    if policy_logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"log-probs of different shapes: {tuple(policy_logprobs.shape)} and "
            f"{tuple(ref_logprobs.shape)}"
        )
    log_ratio = policy_logprobs.to(dtype) - ref_logprobs.to(dtype)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio * log_ratio
    if estimator == "k3":
        return _k3(log_ratio)
    raise ValueError(f"unknown KL estimator {estimator!r}; use 'k1', 'k2' or 'k3'")


def _k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d without cancellation: a series near 0, expm1 elsewhere."""
    x = -log_ratio
    near = x.abs() < _SERIES_BELOW
    small = torch.where(near, x, torch.zeros_like(x))  # keeps the unused branch finite
    series = torch.full_like(x, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        series = series * small + coefficient
    return torch.where(near, series * small * small, torch.expm1(x) - x)
