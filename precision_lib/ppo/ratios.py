"""Ratios of whole responses, and the weights that correct for another rollout policy.

The hazards. The ratio of a response is exp of a sum, or of a mean, of log-ratios; one taken for
the other turns 0.99 into 0.05 on 300 tokens. A product of the tokens' ratios overflows and
underflows on the way: exp(60) * exp(-60) is fine, 300 of each are not. A masked NaN leaks through
a sum. A weight that carries a gradient is not a weight any more.

B sequences, T tokens; ``mask[b, t]`` is True for a real token. Real tokens may lie anywhere.
"""

import torch
from torch import Tensor

from precision_lib.ppo.gradients import with_slope
from precision_lib.ppo.logit_pieces import LOG2_E, fp32_or_wider
from precision_lib.ppo.masked import check_mask, real_float64, real_words, zero_masked

LEVELS = ("token", "sequence", "geometric")
WEIGHT_MODES = ("truncate", "mask")

#: exp of it is nearly the largest float64: beyond, no FP32 factor but 0 brings the product back
#: to FP32, and 0 times it is 0, unlike 0 * inf. A float64 loss saturates here.
LARGEST_LOG_RATIO = 709.78


def finite_ratio(log_ratio: Tensor) -> Tensor:
    """exp of float64 log-ratios, finite; the argument is overwritten.

    By way of exp2, which is faster (:data:`LOG2_E`). The scaled argument adds a
    relative |log_ratio| 2^-53, which no FP32 result shows; a log-ratio of 0 still gives exactly 1.
    """
    return log_ratio.clamp_(max=LARGEST_LOG_RATIO).mul_(LOG2_E).exp2_()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """s_b = exp(mean over real tokens of logprobs - old_logprobs), the ratio of GSPO.

    ds_b / dlogprobs_bt = s_b / n_b at the n_b real tokens; the gradient flows to ``logprobs``
    alone.

    Args:
        logprobs, old_logprobs: [B, T], any floating-point format; masked slots may hold NaN or
            inf.
        mask: [B, T], bool.

    Returns:
        [B], float64 if an input is, else float32; 1 for a sequence without a real token, inf only
        where the exact ratio is not representable.

    Raises:
        ValueError: for shapes that differ or are not [B, T], or a mask that is not bool.

    Source: Zheng et al., "Group Sequence Policy Optimization", equation 7.
    """
    wanted = fp32_or_wider(logprobs, old_logprobs)
    with torch.no_grad():
        words = real_words(mask)
        mean, lengths = mean_log_ratio(logprobs, old_logprobs, mask, words)
        ratio = mean.exp_()
    if not (logprobs.requires_grad and torch.is_grad_enabled()):
        return ratio.to(wanted)
    slope = zero_masked((ratio / lengths).unsqueeze(-1), words)
    return with_slope(logprobs, ratio.to(wanted), slope)


@torch.no_grad()
def importance_weights(
    train_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    level: str,
    mode: str,
    cap: float,
) -> Tensor:
    """Weights that correct a loss for tokens sampled by another policy; no gradient.

    With d_t = train - rollout: ``token``: w_t = exp(d_t). ``sequence``: w_t = exp(sum_t d_t) at
    every token of the response. ``geometric``: w_t = exp(mean_t d_t). ``truncate``: min(w, cap).
    ``mask``: w where w <= cap and 0 elsewhere. Weights are not normalised.

    Args:
        train_logprobs, rollout_logprobs: [B, T], any floating-point format; masked slots may hold
            NaN or inf.
        mask: [B, T], bool. level: one of :data:`LEVELS`. mode: one of :data:`WEIGHT_MODES`.
        cap: C > 0.

    Returns:
        [B, T], float64 if an input is, else float32; 0 in masked slots. A NaN at a real token
        stays NaN.

    Raises:
        ValueError: for shapes that differ or are not [B, T], a mask that is not bool, an unknown
            level or mode, or a cap that is not positive.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
    (truncated importance sampling); Liu et al., "When Speed Kills Stability" (masked, sequence).
    """
    if level not in LEVELS or mode not in WEIGHT_MODES:
        raise ValueError(
            f"unknown level {level!r} or mode {mode!r}; use one of {', '.join(LEVELS)} and one of "
            f"{', '.join(WEIGHT_MODES)}"
        )
    if not cap > 0:
        raise ValueError(f"the cap must be positive, got {cap}")
    wanted = fp32_or_wider(train_logprobs, rollout_logprobs)
    words = real_words(mask)
    if level == "token":
        log_weight = log_ratio(train_logprobs, rollout_logprobs, mask, words)
    else:
        mean, lengths = mean_log_ratio(train_logprobs, rollout_logprobs, mask, words)
        log_weight = (mean * lengths if level == "sequence" else mean).unsqueeze(-1)
    weight = log_weight.exp()
    weight = weight.clamp(max=cap) if mode == "truncate" else torch.where(weight > cap, 0, weight)
    return zero_masked(weight.to(wanted), words)


def log_ratio(new: Tensor, old: Tensor, mask: Tensor, words: Tensor) -> Tensor:
    """new - old, [B, T] float64 without a gradient, 0 in masked slots.

    Args:
        words: :func:`~precision_lib.ppo.masked.real_words` of the mask.

    Raises:
        ValueError: for shapes that differ or are not [B, T], or a mask that is not bool.
    """
    check_mask(mask, new=new, old=old)
    if mask.dim() != 2:
        raise ValueError(f"expected log-probs [B, T], got {tuple(mask.shape)}")
    return real_float64(new, words).sub_(real_float64(old, words))


def mean_log_ratio(new: Tensor, old: Tensor, mask: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """(mean over real tokens of new - old, number of real tokens but at least 1), [B] float64."""
    total = log_ratio(new, old, mask, words).sum(-1)
    lengths = words.sum(-1, dtype=torch.int32).neg_().clamp_(min=1).double()
    return total.div_(lengths), lengths
