"""The PPO losses, and what there is to know about their ratios.

The hazards. The ratio exp(logprob - old) of one token with a log-ratio of 100 is inf in FP32. Its
clipped loss is finite, its gradient 0 * inf = NaN: one such token destroys the step. Clamping after
the exp does not help, clamping the log-ratio before it does so in FP32 and not in fp16 (exp(12) is
inf). With a tiny advantage ratio * advantage is representable although the ratio is not. A masked
NaN leaks through a product with the mask.

So the ratio is taken in float64, where exp reaches e^709, and the gradient is written down instead
of being derived. B sequences, T tokens; ``mask`` is True for a real token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib.ppo.aggregation import count_or_given
from precision_lib.ppo.gradients import with_slope
from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import check_mask, real_count, real_float64, real_words
from precision_lib.ppo.ratios import finite_ratio, log_ratio


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate: mean over real tokens of -min(r A, clip(r, 1-c, 1+c) A).

    r = exp(logprobs - old_logprobs). The gradient is -A r / n where the unclipped product is the
    smaller one and 0 elsewhere; it flows to ``logprobs`` alone.

    Args:
        logprobs, old_logprobs, advantages: [B, T], any floating-point format; masked slots may
            hold NaN or inf.
        mask: [B, T], bool. clip_range: c in (0, 1).
        denominator: None for n, the number of real tokens; else what the sum is divided by, the n
            of the whole batch where this is a part of it.

    Returns:
        Scalar, float64 if an input is, else float32; 0 for an empty mask. Inf only where the
        exact loss is not representable. A NaN in a real token makes the loss and that token's
        gradient NaN.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, or a clip_range out of range.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", equation 7.
    """
    check_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clip_range(clip_range)
    return clipped_surrogate(
        logprobs, old_logprobs, advantages, mask, clip_range, clip_range, None, denominator
    )


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    denominator: float | None,
) -> Tensor:
    """The loss of :func:`policy_loss` and of DAPO, with its gradient; the caller checks numbers.

    The gradient is that of the unclipped product where that is what was taken. Its ratio is
    multiplied by 1 or 0 before the advantage is: an infinite product times 0 would be NaN.
    """
    with torch.no_grad():
        words = real_words(mask)
        new, old, a = (real_float64(x, words) for x in (logprobs, old_logprobs, advantages))
        ratio = finite_ratio(new.sub_(old))
        unclipped = a * ratio
        taken = torch.clamp(ratio, 1 - clip_low, 1 + clip_high, out=old).mul_(a)
        torch.minimum(unclipped, taken, out=taken)
        if dual_clip is not None:  # 0 for A > 0, where the surrogate is positive
            torch.maximum(taken, a.clamp(max=0).mul_(dual_clip), out=taken)
        count = count_or_given(real_count(words), denominator)
        loss = taken.sum().div_(count).neg_()
    loss = loss.to(fp32_or_wider(logprobs, old_logprobs, advantages))
    if not (logprobs.requires_grad and torch.is_grad_enabled()):
        return loss
    return with_slope(logprobs, loss, taken.eq_(unclipped).mul_(ratio).mul_(a).div_(-count))


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float,
    denominator: float | None = None,
) -> Tensor:
    """Mean over real tokens of 0.5 * max((v - R)^2, (clip(v, old - c, old + c) - R)^2).

    The gradient is (v - R) / n where the unclipped square is at least the clipped one and 0
    elsewhere; it flows to ``values`` alone.

    Args:
        values, old_values, returns: [B, T], any floating-point format; masked slots may hold NaN
            or inf.
        mask: [B, T], bool. clip_range: c > 0, in units of the values.
        denominator: as in :func:`policy_loss`.

    Returns:
        Scalar, float64 if an input is, else float32; 0 for an empty mask.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, or a clip_range that is not
            positive.
    """
    check_mask(mask, values=values, old_values=old_values, returns=returns)
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, got {clip_range}")
    with torch.no_grad():
        words = real_words(mask)
        v, old, target = (real_float64(x, words) for x in (values, old_values, returns))
        low, high = old - clip_range, old.add_(clip_range)
        clipped = torch.clamp(v, low, high, out=low).sub_(target).square_()
        error = v.sub_(target)
        unclipped = torch.mul(error, error, out=target)
        count = count_or_given(real_count(words), denominator)
        loss = torch.maximum(unclipped, clipped, out=old).sum().div_(2 * count)
    loss = loss.to(fp32_or_wider(values, old_values, returns))
    if not (values.requires_grad and torch.is_grad_enabled()):
        return loss
    slope = torch.where(unclipped < clipped, 0, error).div_(count)
    return with_slope(values, loss, slope)


@dataclass(frozen=True)
class RatioReport:
    """What the ratios of a batch look like, over its real tokens.

    Attributes:
        clip_frac: share of tokens with a ratio outside [1 - c, 1 + c].
        approx_kl: mean k3 of old against new, nats per token; 0 before the first update.
        smallest_log_ratio, largest_log_ratio: in nats.
        overflow_count: tokens whose ratio is inf in FP32; they count as clipped.
        tokens: number of real tokens.
    """

    clip_frac: float
    approx_kl: float
    smallest_log_ratio: float
    largest_log_ratio: float
    overflow_count: int
    tokens: int


@torch.no_grad()
def ratio_report(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip_range: float
) -> RatioReport:
    """The ratios behind :func:`policy_loss`: how far they are, and which overflow.

    Arguments and errors as in :func:`policy_loss`. An empty mask gives zeros.
    """
    check_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    _check_clip_range(clip_range)
    distance = log_ratio(logprobs, old_logprobs, mask, real_words(mask))
    tokens = int(mask.sum())
    ratio = distance.exp()
    clipped = ((ratio < 1 - clip_range) | (ratio > 1 + clip_range)).sum()
    # k3 of old against new: E_old[r - 1 - log r], its log-ratio being the negative of this one.
    kl = kl_penalty(-distance, torch.zeros_like(distance), "k3").sum()
    return RatioReport(
        clip_frac=int(clipped) / max(tokens, 1),
        approx_kl=float(kl) / max(tokens, 1),
        smallest_log_ratio=float(distance[mask].min()) if tokens else 0.0,
        largest_log_ratio=float(distance[mask].max()) if tokens else 0.0,
        overflow_count=int((ratio > torch.finfo(torch.float32).max).sum()),
        tokens=tokens,
    )


def _check_clip_range(clip_range: float) -> None:
    if not 0 < clip_range < 1:
        raise ValueError(f"clip_range must lie between 0 and 1, got {clip_range}")
