"""Wrong losses: one mutation each, the rest in float64 and differentiated by autograd.

``catalogue`` says where each was seen. All tensors are [B, T]; ``mask`` is True for a real token.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from precision_lib import arguments
from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.losses import policy_loss, value_loss

#: As in the core: exp of it is finite in float64.
_LARGEST_LOG_RATIO = 700.0


def _real(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Float64, 0 in masked slots, with a gradient that never meets what stood there."""
    return [torch.where(mask, x, 0).double() for x in tensors]


@dataclass(frozen=True)
class PolicyLoss(arguments.PolicyLoss[Tensor, Tensor], Arguments[Tensor]):
    """The arguments of :func:`policy_loss`, and the steps of a loss by autograd."""

    original = staticmethod(policy_loss)

    def log_ratio(self) -> Tensor:
        """[B, T], float64; 0 in masked slots."""
        new, old = _real(self.mask, self.logprobs, self.old_logprobs)
        return (new - old).clamp(max=_LARGEST_LOG_RATIO)

    def both(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """(r A, clip(r) A) per token."""
        (a,) = _real(self.mask, self.advantages)
        return a * ratio, a * ratio.clamp(1 - self.clip_range, 1 + self.clip_range)

    def surrogate(self, ratio: Tensor) -> Tensor:
        """-min(r A, clip(r) A) per token."""
        return -torch.min(*self.both(ratio))

    def terms(self) -> Tensor:
        """The right surrogate per token, 0 in masked slots."""
        return torch.where(self.mask, self.surrogate(self.log_ratio().exp()), 0)


def _mean(terms: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, FP32; 0 for an empty mask."""
    return (torch.where(mask, terms, 0).sum() / mask.sum().clamp(min=1)).float()


@fault_of(PolicyLoss)
def exp_without_a_clamp(x: PolicyLoss) -> Tensor:
    """exp of the log-ratio in FP32: behind the clip its gradient is 0 * inf."""
    return _mean(x.surrogate(x.log_ratio().float().exp()), x.mask)


@fault_of(PolicyLoss)
def ratio_clamped_after_exp(x: PolicyLoss) -> Tensor:
    """The ratio is clamped behind the exp that overflowed: a finite loss, the same NaN gradient."""
    ratio = x.log_ratio().float().exp().clamp(max=torch.finfo(torch.float32).max)
    return _mean(x.surrogate(ratio), x.mask)


@fault_of(PolicyLoss)
def log_ratio_clamped_at_20(x: PolicyLoss) -> Tensor:
    """No log-ratio beyond +-20: a harmful token stops counting, and stops learning."""
    return _mean(x.surrogate(x.log_ratio().clamp(-20, 20).exp()), x.mask)


@fault_of(PolicyLoss)
def ratio_in_fp16(x: PolicyLoss) -> Tensor:
    """A clamp at 20 is no help in fp16, where exp(12) is inf."""
    return _mean(x.surrogate(x.log_ratio().clamp(-20, 20).half().exp()), x.mask)


@fault_of(PolicyLoss)
def ratio_in_input_dtype(x: PolicyLoss) -> Tensor:
    """Subtraction and exp in the format of the log-probs; the rest is FP32."""
    new, old = torch.where(x.mask, x.logprobs, 0), torch.where(x.mask, x.old_logprobs, 0)
    return _mean(x.surrogate((new - old).exp()), x.mask)


@fault_of(PolicyLoss)
def ratio_of_probabilities(x: PolicyLoss) -> Tensor:
    """exp(new) / exp(old), which underflow to 0 / 0."""
    new, old = (p.float().exp() for p in _real(x.mask, x.logprobs, x.old_logprobs))
    return _mean(x.surrogate(new / old), x.mask)


@fault_of(PolicyLoss)
def old_logprobs_stored_in_bf16(x: PolicyLoss) -> Tensor:
    """The rollout's log-probs pass through bf16: the ratio before any update is not 1."""
    return x.right(old_logprobs=x.old_logprobs.bfloat16())


@fault_of(PolicyLoss)
def loss_in_input_dtype(x: PolicyLoss) -> Tensor:
    """The scalar is returned in the format of the log-probs: a grid of 0.25 at a loss of 36."""
    return x.right().to(x.logprobs.dtype)


@fault_of(PolicyLoss)
def larger_surrogate(x: PolicyLoss) -> Tensor:
    """max instead of min: the clip rewards what it should limit."""
    return _mean(-torch.max(*x.both(x.log_ratio().exp())), x.mask)


@fault_of(PolicyLoss)
def dual_clip(x: PolicyLoss) -> Tensor:
    """A second clip of harmful tokens at 3 |A|, on without being asked for."""
    (a,) = _real(x.mask, x.advantages)
    terms = x.terms()
    return _mean(torch.where(a < 0, torch.min(terms, -3 * a), terms), x.mask)


@fault_of(PolicyLoss)
def advantage_with_the_other_sign(x: PolicyLoss) -> Tensor:
    """The surrogate is descended instead of ascended."""
    return x.right(advantages=-x.advantages)


@fault_of(PolicyLoss)
def policy_loss_over_all_slots(x: PolicyLoss) -> Tensor:
    """The sum over real tokens is divided by B T, padding included."""
    return x.right() * x.mask.sum() / x.mask.numel()


@fault_of(PolicyLoss)
def policy_loss_of_sequence_means(x: PolicyLoss) -> Tensor:
    """The mean over sequences of their own means: tokens of short responses weigh more."""
    return (x.terms().sum(-1) / x.mask.sum(-1).clamp(min=1)).mean().float()


@fault_of(PolicyLoss)
def policy_loss_by_product_with_mask(x: PolicyLoss) -> Tensor:
    """The surrogate of padding is computed and multiplied by 0."""
    terms = replace(x, mask=torch.ones_like(x.mask)).terms()
    return ((terms * x.mask).sum() / x.mask.sum().clamp(min=1)).float()


@fault_of(PolicyLoss)
def policy_loss_of_nothing(x: PolicyLoss) -> Tensor:
    """An empty mask divides 0 by 0."""
    return (x.terms().sum() / x.mask.sum()).float()


@fault_of(PolicyLoss)
def policy_tokens_counted_in_bf16(x: PolicyLoss) -> Tensor:
    """The sum is divided by a count of tokens that bf16 rounds from 257 on."""
    return (x.terms().sum() / x.mask.sum().clamp(min=1).bfloat16().double()).float()


class _OneWhateverComes(torch.autograd.Function):
    """The loss with its own gradient, whatever the loss is multiplied by later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0], None, None


@fault_of(PolicyLoss)
def policy_gradient_ignores_loss_scaling(x: PolicyLoss) -> Tensor:
    """A backward that does not multiply by what comes from above."""
    logprobs = x.logprobs.detach().requires_grad_()
    loss = x.right(logprobs=logprobs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return _OneWhateverComes.apply(x.logprobs, loss.detach(), gradient)  # type: ignore[no-any-return]  # apply is untyped


@dataclass(frozen=True)
class ValueLoss(arguments.ValueLoss[Tensor, Tensor], Arguments[Tensor]):
    """The arguments of :func:`value_loss`, and its errors in float64."""

    original = staticmethod(value_loss)

    def errors(self) -> tuple[Tensor, Tensor]:
        """(v - R, clip(v, old - c, old + c) - R) per token."""
        v, old, target = _real(self.mask, self.values, self.old_values, self.returns)
        clipped = v.clamp(old - self.clip_range, old + self.clip_range)
        return v - target, clipped - target

    def terms(self) -> Tensor:
        """Half the larger squared error per token."""
        error, clipped = self.errors()
        return 0.5 * torch.max(error.square(), clipped.square())


@fault_of(ValueLoss)
def smaller_error(x: ValueLoss) -> Tensor:
    """min instead of max: a value that runs away is not held."""
    error, clipped = x.errors()
    return _mean(0.5 * torch.min(error.square(), clipped.square()), x.mask)


@fault_of(ValueLoss)
def errors_compared_with_their_sign(x: ValueLoss) -> Tensor:
    """The larger error is squared instead of the larger square taken: -3 loses against 1."""
    return _mean(0.5 * torch.max(*x.errors()).square(), x.mask)


@fault_of(ValueLoss)
def value_loss_without_its_half(x: ValueLoss) -> Tensor:
    """Twice the loss, and twice the learning rate of the critic."""
    return 2 * x.right()


@fault_of(ValueLoss)
def clipped_around_the_returns(x: ValueLoss) -> Tensor:
    """The values are clipped to a band around the returns instead of the old values."""
    return x.right(old_values=x.returns)


@fault_of(ValueLoss)
def value_loss_in_input_dtype(x: ValueLoss) -> Tensor:
    """Errors and squares in the format of the critic's output; the mean is FP32."""
    v, old, target = (torch.where(x.mask, y, 0) for y in (x.values, x.old_values, x.returns))
    clipped = v.clamp(old - x.clip_range, old + x.clip_range)
    larger = torch.max((v - target).square(), (clipped - target).square())
    return _mean(0.5 * larger.to(fp32_or_wider(x.values)), x.mask)


@fault_of(ValueLoss)
def gradient_of_the_clipped_branch_alone(x: ValueLoss) -> Tensor:
    """The unclipped error is detached: a right loss that teaches nothing outside the band."""
    error, clipped = x.errors()
    return _mean(0.5 * torch.max(error.detach().square(), clipped.square()), x.mask)


@fault_of(ValueLoss)
def value_loss_over_all_slots(x: ValueLoss) -> Tensor:
    """The sum over real tokens is divided by B T, padding included."""
    return x.right() * x.mask.sum() / x.mask.numel()


@fault_of(ValueLoss)
def value_loss_by_product_with_mask(x: ValueLoss) -> Tensor:
    """The error of padding is computed and multiplied by 0."""
    terms = replace(x, mask=torch.ones_like(x.mask)).terms()
    return ((terms * x.mask).sum() / x.mask.sum().clamp(min=1)).float()


@fault_of(ValueLoss)
def value_loss_of_nothing(x: ValueLoss) -> Tensor:
    """An empty mask divides 0 by 0."""
    return (torch.where(x.mask, x.terms(), 0).sum() / x.mask.sum()).float()


@fault_of(ValueLoss)
def values_through_bf16(x: ValueLoss) -> Tensor:
    """The critic's new values pass through bf16, the old values and returns do not."""
    return x.right(values=x.values.bfloat16())


@fault_of(ValueLoss)
def value_loss_left_in_input_dtype(x: ValueLoss) -> Tensor:
    """The scalar keeps the values' format, rounded to it once."""
    return x.right().to(x.values.dtype)
