"""Wrong objectives of today: one mutation each, the rest in float64, differentiated by autograd.

``catalogue`` says where each was seen. Log-probs are [B, T]; ``mask`` is True for a real token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib import arguments
from precision_lib.faults.arguments import fault_of
from precision_lib.faults.ratios import LARGEST, PairOfLogprobs, lengths
from precision_lib.ppo.objectives import cispo_loss, dapo_loss, gspo_loss


class Clipped(PairOfLogprobs):
    """The steps of a clipped loss; a base of dataclasses, and none itself."""

    advantages: Tensor
    clip_low: float
    clip_high: float

    def surrogate(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """-min(r A, clip(r) A)."""
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        return -torch.min(ratio * advantages, clipped * advantages)

    def real_advantages(self) -> Tensor:
        """Float64, 0 in masked slots or for sequences without a token."""
        over = self.mask if self.advantages.dim() == 2 else self.mask.any(1)
        return torch.where(over, self.advantages, 0).double()


@dataclass(frozen=True)
class Gspo(arguments.Clipped[Tensor, Tensor], Clipped):
    """The arguments of :func:`gspo_loss`."""

    denominator: float | None = None
    original = staticmethod(gspo_loss)

    def count(self) -> Tensor:
        """Sequences with a real token, at least 1."""
        return self.mask.any(1).sum().clamp(min=1)

    def over(self, terms: Tensor) -> Tensor:
        """The mean of the sequences' terms [B]."""
        return (terms.sum() / (self.denominator or self.count())).float()


@fault_of(Gspo)
def gspo_exponent_without_a_clamp(x: Gspo) -> Tensor:
    """exp of a mean log-ratio of 100 in FP32: a finite loss, a NaN gradient."""
    mean = (x.log_ratio().sum(1) / lengths(x.mask)).float()
    return x.over(x.surrogate(mean.exp(), x.real_advantages().float()))


@fault_of(Gspo)
def gspo_of_token_ratios(x: Gspo) -> Tensor:
    """Every token is clipped by its own ratio, as in PPO."""
    terms = x.surrogate(x.log_ratio().exp(), x.real_advantages()[:, None])
    return x.over(torch.where(x.mask, terms, 0).sum(1) / lengths(x.mask))


@fault_of(Gspo)
def gspo_of_the_summed_log_ratio(x: Gspo) -> Tensor:
    """The ratio of the response is not taken to the power 1 / n."""
    ratio = x.log_ratio().sum(1).clamp(max=LARGEST).exp()
    return x.over(x.surrogate(ratio, x.real_advantages()))


@fault_of(Gspo)
def gspo_mean_over_tokens(x: Gspo) -> Tensor:
    """A response weighs by its length."""
    ratio = (x.log_ratio().sum(1) / lengths(x.mask)).exp()
    terms = x.surrogate(ratio, x.real_advantages()) * x.mask.sum(1)
    return x.over(terms * x.count() / x.mask.sum().clamp(min=1))


@fault_of(Gspo)
def gspo_gradient_of_every_token_whole(x: Gspo) -> Tensor:
    """The stop-gradient form without the mean over tokens: n_b times the gradient."""
    loss = x.right()
    return loss * 2 - loss.detach()


@fault_of(Gspo)
def gspo_centred_before_masking(x: Gspo) -> Tensor:
    """The mean log-ratio of all slots is subtracted before the mask is applied."""
    d = (x.logprobs - x.old_logprobs).double().clamp(max=LARGEST)
    ratio = (torch.where(x.mask, d - d.mean(), 0).sum(1) / lengths(x.mask)).exp()
    return x.over(x.surrogate(ratio, x.real_advantages()))


@fault_of(Gspo)
def gspo_denominator_ignored(x: Gspo) -> Tensor:
    """Every micro-batch divides by its own number of sequences."""
    return x.right(denominator=None)


@fault_of(Gspo)
def gspo_denominator_of_rows(x: Gspo) -> Tensor:
    """Rows are counted, those without a real token included."""
    return x.right() if x.denominator else x.right(denominator=float(max(len(x.mask), 1)))


@dataclass(frozen=True)
class Dapo(arguments.Dapo[Tensor, Tensor], Clipped):
    """The arguments of :func:`dapo_loss`."""

    dual_clip: float | None = None
    denominator: float | None = None
    original = staticmethod(dapo_loss)

    def over(self, terms: Tensor) -> Tensor:
        """The mean of the tokens' terms [B, T]."""
        count = self.denominator or self.mask.sum().clamp(min=1)
        return (torch.where(self.mask, terms, 0).sum() / count).float()


@fault_of(Dapo)
def dapo_clips_exchanged(x: Dapo) -> Tensor:
    """The lower range is used above and the upper one below."""
    return x.right(clip_low=min(x.clip_high, 1.0), clip_high=x.clip_low)


@fault_of(Dapo)
def dapo_upper_clip_ignored(x: Dapo) -> Tensor:
    """One clip range for both sides: rare tokens are held down."""
    return x.right(clip_high=x.clip_low)


@fault_of(Dapo)
def dapo_without_its_dual_clip(x: Dapo) -> Tensor:
    """The dual clip is accepted and ignored."""
    return x.right(dual_clip=None)


@fault_of(Dapo)
def dual_clip_of_all_advantages(x: Dapo) -> Tensor:
    """The dual clip also holds tokens with a positive advantage."""
    advantages, ratio = x.real_advantages(), x.log_ratio().exp()
    terms = x.surrogate(ratio, advantages)
    limit = (x.dual_clip or torch.inf) * advantages.abs()
    return x.over(torch.where(advantages == 0, 0, torch.min(terms, 0.4 * limit)))


@fault_of(Dapo)
def dual_clip_of_the_wrong_side(x: Dapo) -> Tensor:
    """The larger of loss and dual clip: a harmful token counts c at least."""
    if x.dual_clip is None:
        return x.right()
    advantages = x.real_advantages()
    terms = x.surrogate(x.log_ratio().exp(), advantages)
    return x.over(torch.where(advantages < 0, torch.max(terms, -x.dual_clip * advantages), terms))


@fault_of(Dapo)
def dapo_ratio_in_fp32(x: Dapo) -> Tensor:
    """exp of a log-ratio of 100 in FP32: 0 * inf behind the clip."""
    ratio, advantages = x.log_ratio().float().exp(), x.real_advantages().float()
    terms = x.surrogate(ratio, advantages)
    limit = -(x.dual_clip or torch.inf) * advantages
    return x.over(torch.where(advantages < 0, torch.min(terms, limit), terms))


@fault_of(Dapo)
def dapo_mean_of_sequence_means(x: Dapo) -> Tensor:
    """Token-level loss as a mean of the sequences' means."""
    terms = torch.where(x.mask, x.surrogate(x.log_ratio().exp(), x.real_advantages()), 0)
    if x.dual_clip or x.denominator:
        return x.right()
    return ((terms.sum(1) / lengths(x.mask)).sum() / x.mask.any(1).sum().clamp(min=1)).float()


@fault_of(Dapo)
def dapo_denominator_ignored(x: Dapo) -> Tensor:
    """Every rank divides by its own tokens."""
    return x.right(denominator=None)


@fault_of(Dapo)
def dapo_divided_by_slots(x: Dapo) -> Tensor:
    """The share of the part is taken from its slots: packing and padding change the loss."""
    return x.right() * x.mask.sum() / x.mask.numel()


@dataclass(frozen=True)
class Cispo(arguments.Clipped[Tensor, Tensor], Clipped):
    """The arguments of :func:`cispo_loss`."""

    denominator: float | None = None
    original = staticmethod(cispo_loss)

    def loss(self, weight: Tensor, keep: Tensor | None = None) -> Tensor:
        """-w A logprobs over the denominator."""
        real = torch.where(self.mask, self.logprobs, 0).double()
        terms = -weight * self.real_advantages() * real
        terms = terms if keep is None else torch.where(keep, terms, 0)
        count = self.denominator or self.mask.sum().clamp(min=1)
        return (torch.where(self.mask, terms, 0).sum() / count).float()

    def weight(self) -> Tensor:
        """clip(r), with its gradient."""
        return self.log_ratio().exp().clamp(1 - self.clip_low, 1 + self.clip_high)


@fault_of(Cispo)
def cispo_weight_not_detached(x: Cispo) -> Tensor:
    """The weight carries a gradient of its own."""
    return x.loss(x.weight())


@fault_of(Cispo)
def cispo_drops_clipped_tokens(x: Cispo) -> Tensor:
    """Tokens that PPO would clip do not learn: what CISPO is there to avoid."""
    ratio, advantages = x.log_ratio().exp().detach(), x.real_advantages()
    cut = ((ratio > 1 + x.clip_high) & (advantages > 0)) | (
        (ratio < 1 - x.clip_low) & (advantages < 0)
    )
    return x.loss(x.weight().detach(), ~cut)


@fault_of(Cispo)
def cispo_without_its_lower_clip(x: Cispo) -> Tensor:
    """The weight has no lower limit."""
    return x.right(clip_low=1.0)


@fault_of(Cispo)
def cispo_cap_without_one(x: Cispo) -> Tensor:
    """The weight is held at clip_high instead of 1 + clip_high."""
    weight = x.log_ratio().exp().detach()
    return x.loss(weight.clamp(min=1 - x.clip_low).clamp(max=max(x.clip_high, 1 - x.clip_low)))


@fault_of(Cispo)
def cispo_of_the_ratio(x: Cispo) -> Tensor:
    """The loss is that of PPO's ratio, with the right gradient and another value."""
    real = x.right()
    fake = x.loss(torch.ones_like(x.logprobs, dtype=torch.float64)).detach()
    return real - real.detach() + fake


@fault_of(Cispo)
def cispo_denominator_ignored(x: Cispo) -> Tensor:
    """Every micro-batch divides by its own tokens."""
    return x.right(denominator=None)
