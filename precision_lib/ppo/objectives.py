"""Clipped objectives after PPO: DAPO, GSPO and CISPO.

The hazards are those of ``losses.py``: a ratio that overflows behind a clip gives 0 * inf = NaN in
the gradient, and a mean over the tokens of a micro-batch depends on how the batch is split. GSPO
meets the first one sooner: one far token moves the ratio of its whole response.

So ratios are taken in float64 and gradients are written down. Each loss takes a ``denominator``:
the number of tokens, or of sequences, of the whole batch when it is computed in parts. B
sequences, T tokens; ``mask[b, t]`` is True for a real token.
"""

import torch
from torch import Tensor

from precision_lib.ppo.aggregation import count_or_given
from precision_lib.ppo.gradients import with_slope
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.losses import clipped_surrogate
from precision_lib.ppo.masked import (
    check_mask,
    real_count,
    real_float64,
    real_or_zero,
    real_words,
    zero_masked,
)
from precision_lib.ppo.ratios import finite_ratio, mean_log_ratio


def dapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    denominator: float | None = None,
) -> Tensor:
    """The clipped surrogate with two clip ranges: mean over real tokens of -q A.

    r = exp(logprobs - old_logprobs). q = min(r, 1 + clip_high) for A > 0. For A < 0
    q = max(r, 1 - clip_low), and with a ``dual_clip`` c at most c. The gradient is -A r / n where
    q is r and 0 elsewhere; it flows to ``logprobs`` alone.

    Args:
        logprobs, old_logprobs, advantages: [B, T], any floating-point format; masked slots may
            hold NaN or inf.
        mask: [B, T], bool. clip_low: in (0, 1]. clip_high: > 0. dual_clip: None, or c > 1.
        denominator: None for n, the number of real tokens; else what the sum is divided by.

    Returns:
        Scalar, float64 if an input is, else float32; 0 for an empty mask. Inf only where the exact
        loss is not representable.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, or a number out of its range.

    Source: Yu et al., "DAPO", equation 8; dual clip: Ye et al., "Mastering Complex Control in MOBA
    Games with Deep Reinforcement Learning", equation 7.
    """
    _check_clips(clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    check_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    return clipped_surrogate(
        logprobs, old_logprobs, advantages, mask, clip_low, clip_high, dual_clip, denominator
    )


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    denominator: float | None = None,
) -> Tensor:
    """Mean over sequences of -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A).

    s is :func:`~precision_lib.ppo.ratios.sequence_ratio`. With N sequences and n_b real tokens the
    gradient is -A s / (N n_b) where the unclipped product is the smaller one, and 0 elsewhere; it
    flows to ``logprobs`` alone. A sequence without a real token does not count.

    Args:
        logprobs, old_logprobs: [B, T], any floating-point format; masked slots may hold NaN or
            inf.
        advantages: [B], one for each response. mask: [B, T], bool.
        clip_low: in (0, 1]. clip_high: > 0.
        denominator: None for N, the number of sequences with a real token; else what the sum over
            sequences is divided by.

    Returns:
        Scalar, float64 if an input is, else float32; 0 for an empty mask. Inf only where the exact
        loss is not representable.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, or a number out of its range.

    Source: Zheng et al., "Group Sequence Policy Optimization", equations 5 and 7.
    """
    _check_clips(clip_low, clip_high)
    with torch.no_grad():
        words = real_words(mask)
        mean, lengths = mean_log_ratio(logprobs, old_logprobs, mask, words)
        present = mask.any(-1)
        check_mask(present, advantages=advantages)
        a, ratio = real_or_zero(advantages, present).double(), finite_ratio(mean)
        unclipped, clipped = a * ratio, ratio.clamp(1 - clip_low, 1 + clip_high).mul_(a)
        count = count_or_given(present.sum(), denominator)
        loss = torch.minimum(unclipped, clipped).sum().div_(count).neg_()
    loss = loss.to(fp32_or_wider(logprobs, old_logprobs, advantages))
    if not (logprobs.requires_grad and torch.is_grad_enabled()):
        return loss
    of_token = torch.where(unclipped > clipped, 0, unclipped).div_(-count * lengths)
    return with_slope(logprobs, loss, zero_masked(of_token.unsqueeze(-1), words))


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    denominator: float | None = None,
) -> Tensor:
    """Mean over real tokens of -w A logprobs, w = clip(r, 1 - clip_low, 1 + clip_high).

    r = exp(logprobs - old_logprobs); w is a constant, so the gradient is -w A / n at every real
    token, clipped or not; it flows to ``logprobs`` alone.

    Args:
        logprobs, old_logprobs, advantages: [B, T], any floating-point format; masked slots may
            hold NaN or inf.
        mask: [B, T], bool. clip_low: in (0, 1]; 1 is no lower clip. clip_high: > 0.
        denominator: None for n, the number of real tokens; else what the sum is divided by.

    Returns:
        Scalar, float64 if an input is, else float32; 0 for an empty mask.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, or a number out of its range.

    Source: MiniMax, "MiniMax-M1", equations 4 and 5.
    """
    _check_clips(clip_low, clip_high)
    check_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    with torch.no_grad():
        words = real_words(mask)
        new, old, a = (real_float64(x, words) for x in (logprobs, old_logprobs, advantages))
        ratio = finite_ratio(torch.sub(new, old, out=old))
        weight = ratio.clamp_(1 - clip_low, 1 + clip_high).mul_(a)
        count = count_or_given(real_count(words), denominator)
        loss = new.mul_(weight).sum().div_(count).neg_()
    loss = loss.to(fp32_or_wider(logprobs, old_logprobs, advantages))
    if not (logprobs.requires_grad and torch.is_grad_enabled()):
        return loss
    return with_slope(logprobs, loss, weight.div_(-count))


def _check_clips(clip_low: float, clip_high: float) -> None:
    if not (0 < clip_low <= 1 and clip_high > 0):
        raise ValueError(
            f"clip_low must lie in (0, 1] and clip_high above 0, got {clip_low} and {clip_high}"
        )
