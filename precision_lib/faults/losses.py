"""Wrong losses: one mutation each, the rest in float64 and differentiated by autograd.

The hazard. A clipped loss hides its mistakes: it is finite where its gradient is not, and right on
every token that is not clipped. ``catalogue`` says where each was seen. All tensors are [B, T];
``mask`` is True for a real token.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.ppo.losses import policy_loss, value_loss
from precision_lib.ppo.rows import fp32_or_wider

#: As in the core: exp of it is finite in float64.
_LARGEST_LOG_RATIO = 700.0


def _real(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Float64, 0 in masked slots, with a gradient that never meets what stood there."""
    return [torch.where(mask, x, 0).double() for x in tensors]


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    new, old = _real(mask, logprobs, old_logprobs)
    return (new - old).clamp(max=_LARGEST_LOG_RATIO)


def _mean(terms: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, FP32; 0 for an empty mask."""
    return (torch.where(mask, terms, 0).sum() / mask.sum().clamp(min=1)).float()


def _surrogate(ratio: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> Tensor:
    """-min(r A, clip(r) A) per token."""
    (a,) = _real(mask, advantages)
    return -torch.min(a * ratio, a * ratio.clamp(1 - clip_range, 1 + clip_range))


def exp_without_a_clamp(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """exp of the log-ratio in FP32: behind the clip its gradient is 0 * inf."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).float().exp()
    return _mean(_surrogate(ratio, advantages, mask, clip_range), mask)


def ratio_clamped_after_exp(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The ratio is clamped behind the exp that overflowed: a finite loss, the same NaN gradient."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).float().exp()
    ratio = ratio.clamp(max=torch.finfo(torch.float32).max)
    return _mean(_surrogate(ratio, advantages, mask, clip_range), mask)


def log_ratio_clamped_at_20(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """No log-ratio beyond +-20: a harmful token stops counting, and stops learning."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-20, 20).exp()
    return _mean(_surrogate(ratio, advantages, mask, clip_range), mask)


def ratio_in_fp16(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """A clamp at 20 is no help in fp16, where exp(12) is inf."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-20, 20).half().exp()
    return _mean(_surrogate(ratio, advantages, mask, clip_range), mask)


def ratio_in_input_dtype(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """Subtraction and exp in the format of the log-probs; the rest is FP32."""
    new, old = torch.where(mask, logprobs, 0), torch.where(mask, old_logprobs, 0)
    return _mean(_surrogate((new - old).exp(), advantages, mask, clip_range), mask)


def ratio_of_probabilities(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """exp(new) / exp(old), which underflow to 0 / 0."""
    new, old = (x.float().exp() for x in _real(mask, logprobs, old_logprobs))
    return _mean(_surrogate(new / old, advantages, mask, clip_range), mask)


def old_logprobs_stored_in_bf16(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The rollout's log-probs pass through bf16: the ratio before any update is not 1."""
    return policy_loss(logprobs, old_logprobs.bfloat16(), advantages, mask, clip_range)


def loss_in_input_dtype(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The scalar is returned in the format of the log-probs: a grid of 0.25 at a loss of 36."""
    return policy_loss(logprobs, old_logprobs, advantages, mask, clip_range).to(logprobs.dtype)


def larger_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """max instead of min: the clip rewards what it should limit."""
    (a,) = _real(mask, advantages)
    ratio = _log_ratio(logprobs, old_logprobs, mask).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return _mean(-torch.max(a * ratio, a * clipped), mask)


def dual_clip(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """A second clip of harmful tokens at 3 |A|, on without being asked for."""
    (a,) = _real(mask, advantages)
    ratio = _log_ratio(logprobs, old_logprobs, mask).exp()
    terms = _surrogate(ratio, advantages, mask, clip_range)
    return _mean(torch.where(a < 0, torch.min(terms, -3 * a), terms), mask)


def advantage_with_the_other_sign(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The surrogate is descended instead of ascended."""
    return policy_loss(logprobs, old_logprobs, -advantages, mask, clip_range)


def policy_loss_over_all_slots(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The sum over real tokens is divided by B T, padding included."""
    loss = policy_loss(logprobs, old_logprobs, advantages, mask, clip_range)
    return loss * mask.sum() / mask.numel()


def policy_loss_of_sequence_means(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The mean over sequences of their own means: tokens of short responses weigh more."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).exp()
    terms = torch.where(mask, _surrogate(ratio, advantages, mask, clip_range), 0)
    return (terms.sum(-1) / mask.sum(-1).clamp(min=1)).mean().float()


def policy_loss_by_product_with_mask(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The surrogate of padding is computed and multiplied by 0."""
    everywhere = torch.ones_like(mask)
    ratio = _log_ratio(logprobs, old_logprobs, everywhere).exp()
    terms = _surrogate(ratio, advantages, everywhere, clip_range)
    return ((terms * mask).sum() / mask.sum().clamp(min=1)).float()


def policy_loss_of_nothing(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """An empty mask divides 0 by 0."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).exp()
    terms = torch.where(mask, _surrogate(ratio, advantages, mask, clip_range), 0)
    return (terms.sum() / mask.sum()).float()


def policy_tokens_counted_in_bf16(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The sum is divided by a count of tokens that bf16 rounds from 257 on."""
    ratio = _log_ratio(logprobs, old_logprobs, mask).exp()
    terms = torch.where(mask, _surrogate(ratio, advantages, mask, clip_range), 0)
    return (terms.sum() / mask.sum().clamp(min=1).bfloat16().double()).float()


class _OneWhateverComes(torch.autograd.Function):
    """The loss with its own gradient, whatever the loss is multiplied by later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0], None, None


def policy_gradient_ignores_loss_scaling(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """A backward that does not multiply by what comes from above."""
    x = logprobs.detach().requires_grad_()
    loss = policy_loss(x, old_logprobs, advantages, mask, clip_range)
    (gradient,) = torch.autograd.grad(loss, x)
    return _OneWhateverComes.apply(logprobs, loss.detach(), gradient)  # type: ignore[no-any-return]  # apply is untyped


def _errors(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """(v - R, clip(v, old - c, old + c) - R) per token."""
    v, old, target = _real(mask, values, old_values, returns)
    return v - target, v.clamp(old - clip_range, old + clip_range) - target


def smaller_error(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """min instead of max: a value that runs away is not held."""
    error, clipped = _errors(values, old_values, returns, mask, clip_range)
    return _mean(0.5 * torch.min(error.square(), clipped.square()), mask)


def errors_compared_with_their_sign(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The larger error is squared instead of the larger square taken: -3 loses against 1."""
    error, clipped = _errors(values, old_values, returns, mask, clip_range)
    return _mean(0.5 * torch.max(error, clipped).square(), mask)


def value_loss_without_its_half(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """Twice the loss, and twice the learning rate of the critic."""
    return 2 * value_loss(values, old_values, returns, mask, clip_range)


def clipped_around_the_returns(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The values are clipped to a band around the returns instead of the old values."""
    return value_loss(values, returns, returns, mask, clip_range)


def value_loss_in_input_dtype(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """Errors and squares in the format of the critic's output; the mean is FP32."""
    v, old, target = (torch.where(mask, x, 0) for x in (values, old_values, returns))
    clipped = v.clamp(old - clip_range, old + clip_range)
    larger = torch.max((v - target).square(), (clipped - target).square())
    return _mean(0.5 * larger.to(fp32_or_wider(values)), mask)


def gradient_of_the_clipped_branch_alone(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The unclipped error is detached: a right loss that teaches nothing outside the band."""
    error, clipped = _errors(values, old_values, returns, mask, clip_range)
    return _mean(0.5 * torch.max(error.detach().square(), clipped.square()), mask)


def value_loss_over_all_slots(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The sum over real tokens is divided by B T, padding included."""
    loss = value_loss(values, old_values, returns, mask, clip_range)
    return loss * mask.sum() / mask.numel()


def value_loss_by_product_with_mask(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The error of padding is computed and multiplied by 0."""
    error, clipped = _errors(values, old_values, returns, torch.ones_like(mask), clip_range)
    terms = 0.5 * torch.max(error.square(), clipped.square())
    return ((terms * mask).sum() / mask.sum().clamp(min=1)).float()


def value_loss_of_nothing(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """An empty mask divides 0 by 0."""
    error, clipped = _errors(values, old_values, returns, mask, clip_range)
    terms = torch.where(mask, 0.5 * torch.max(error.square(), clipped.square()), 0)
    return (terms.sum() / mask.sum()).float()


def values_through_bf16(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The critic's new values pass through bf16, the old values and returns do not."""
    return value_loss(values.bfloat16(), old_values, returns, mask, clip_range)


def value_loss_left_in_input_dtype(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    """The scalar keeps the values' format, rounded to it once."""
    return value_loss(values, old_values, returns, mask, clip_range).to(values.dtype)
