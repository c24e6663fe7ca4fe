"""KL divergence: per-token estimators, the full distribution, and the adaptive coefficient.

The hazard. With d = log pi - log pi_ref, the k3 estimator exp(-d) - 1 + d is about d^2 / 2: near
the reference it subtracts two numbers of size 1 to get one of size 1e-8, and every RLHF framework
read so far writes it that way. In FP32 the textbook form has an error of the size of its value at
|d| = 3e-4; in bf16 at |d| = 0.06, where it also comes out negative, which KL never is. The form
here has a small *relative* error for every d, in every format.

B sequences, T tokens, V vocabulary entries.
"""

import math
from functools import cache

import torch
from torch import Tensor

from precision_lib.ppo.gradients import with_slope
from precision_lib.ppo.logit_pieces import as_sequences, fp32_or_wider, row_pieces

#: |d| up to which k3 is a power series. Beyond, it is the series at the border plus the rest.
_BORDER = 0.25


def kl_penalty(
    policy_logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Per-token KL estimate from the log-ratio d = policy - ref.

    ``"k1"``: d. ``"k2"``: d^2 / 2. ``"k3"``: exp(-d) - 1 + d, never negative. Differentiable in
    both; a slot whose upstream gradient is 0 gets exactly 0, whatever it holds.

    Args:
        policy_logprobs, ref_logprobs: [B, T], any floating-point format.
        estimator: one of k1, k2, k3 (Schulman, "Approximating KL divergence", 2020).
        dtype: the format of the arithmetic, default FP32 or the inputs' own if wider; inputs are
            cast to it first and every operation rounds to it.

    Returns:
        [B, T] of ``dtype``; inf where k3 exceeds it (d below -88.7 in FP32).

    Raises:
        ValueError: for different shapes or an unknown estimator.
    """
    if policy_logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"log-probs of different shapes: {tuple(policy_logprobs.shape)} and "
            f"{tuple(ref_logprobs.shape)}"
        )
    policy, ref = policy_logprobs, ref_logprobs
    if not (dtype is None and policy.dtype is ref.dtype is torch.float32):  # the usual case: as is
        wanted = dtype or fp32_or_wider(policy, ref)
        policy, ref = policy.to(wanted), ref.to(wanted)
    if estimator == "k1":
        return policy - ref
    if estimator not in ("k2", "k3"):
        raise ValueError(f"unknown KL estimator {estimator!r}; use 'k1', 'k2' or 'k3'")
    x = ref - policy
    minus_d = x.detach()
    value = (minus_d * minus_d).mul_(0.5) if estimator == "k2" else _k3(minus_d)
    if not x.requires_grad:
        return value
    return with_slope(x, value, minus_d if estimator == "k2" else torch.expm1(minus_d))


def _k3(x: Tensor) -> Tensor:
    """exp(x) - 1 - x without cancellation, x = -d.

    With s = x clamped to the border and t = x - s:
    e^x - 1 - x = (e^s - 1 - s) + (e^s (e^t - 1) - t), the first bracket a series P(s), and
    e^s = 1 + s + P(s). For |x| within the border t is 0 and the second bracket exactly 0.
    """
    if x.device.type == "cpu" and x.numel() and float(x.abs().amax()) <= _BORDER:
        return _k3_series(x)  # the second bracket would be 0; on a GPU the question costs more
    near = x.clamp(-_BORDER, _BORDER)
    series = _k3_series(near)
    rest = (x - near).clamp_(max=1e4)  # exp of it is inf in every format; inf - inf is not met
    factor = series.add(near).add_(1)
    return factor.mul_(torch.expm1(rest)).sub_(rest).add_(series)


def _k3_series(x: Tensor) -> Tensor:
    """x^2/2! + x^3/3! + ... by Horner's rule."""
    first, *others = _coefficients(x.dtype, x.device)
    series = first * x
    for coefficient in others[:-1]:
        series.add_(coefficient).mul_(x)
    return series.add_(others[-1]).mul_(x).mul_(x)


@cache
def _coefficients(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """1/n!, ..., 1/3!, 1/2!: as many as make the first one left out less than half a unit roundoff.

    Relative to x^2/2 the term x^k/k! is at most 2 border^(k-2) / k!.
    """
    k = 3
    while 2 * _BORDER ** (k - 2) / math.factorial(k) > torch.finfo(dtype).eps / 4:
        k += 1
    wanted = [1 / math.factorial(i) for i in range(k - 1, 1, -1)]
    return [torch.tensor(c, dtype=dtype, device=device) for c in wanted]


def full_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy || reference) over the whole vocabulary: sum_v p_v (log p_v - log q_v).

    Computed in float64 whatever the input format, because near the reference it is a small
    difference of large sums; a few rows at a time. A zero probability of the policy contributes
    nothing. Not differentiable.

    Args:
        policy_logits, reference_logits: [..., V].

    Returns:
        [...], float64, nats, never negative beyond rounding; NaN where a row is no distribution.

    Raises:
        ValueError: for different shapes.
    """
    if policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"logits of different shapes: {tuple(policy_logits.shape)} and "
            f"{tuple(reference_logits.shape)}"
        )
    policy, reference = (as_sequences(x.detach()) for x in (policy_logits, reference_logits))
    if policy.shape != reference.shape:  # of different layouts
        policy, reference = (x.reshape(1, -1, x.shape[-1]) for x in (policy, reference))
    kl = torch.empty(policy.shape[:2], dtype=torch.float64, device=policy.device)
    pieces = zip(*(row_pieces(x, torch.float64) for x in (policy, reference)), strict=True)
    for (rows, p), (_, q) in pieces:
        kl[rows] = _rows_kl(p, q)
    return kl.view(policy_logits.shape[:-1])


def _rows_kl(policy: Tensor, reference: Tensor) -> Tensor:
    log_p, log_q = policy.log_softmax(-1), reference.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p == 0, 0, p * (log_p - log_q)).sum(-1)


def update_kl_coefficient(
    coefficient: float, observed_kl: float, target_kl: float, horizon: int, steps: int
) -> float:
    """The adaptive KL controller: coefficient * (1 + clip(observed/target - 1) * steps/horizon).

    The relative error is clipped to +-0.2.

    Args:
        coefficient: the present weight of the KL penalty, > 0.
        observed_kl: mean KL per sequence of the last batch, nats; the noise of a mean of k1 may
            make it negative.
        target_kl: nats, > 0. horizon: number of samples over which to correct, > 0.
        steps: samples since the last update, from 0 to below 5 horizon, where the factor is 0.

    Raises:
        ValueError: for an argument out of its range, or a KL that is not finite.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """
    if not math.isfinite(observed_kl):
        raise ValueError(
            f"observed KL is {observed_kl}; the policy has left the reference or a log-prob "
            "overflowed: stop the run instead of adapting the coefficient"
        )
    positive = (coefficient, target_kl, horizon)
    if not (all(0 < x < math.inf for x in positive) and 0 <= steps < 5 * horizon):
        raise ValueError(
            "coefficient, target_kl and horizon must be positive and steps at least 0 and below "
            f"5 horizon, got {coefficient}, {target_kl}, {horizon}, {steps}"
        )
    error = min(max(observed_kl / target_kl - 1, -0.2), 0.2)
    return coefficient * (1 + error * steps / horizon)
