"""Wrong objectives of today: one mutation each, the rest in float64, differentiated by autograd.

``catalogue`` says where each was seen. Log-probs are [B, T]; ``mask`` is True for a real token.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.losses import policy_loss, value_loss
from precision_lib.ppo.objectives import cispo_loss, dapo_loss, gspo_loss
from precision_lib.ppo.ratios import importance_weights, sequence_ratio

#: exp of it is finite in float64.
_LARGEST = 700.0


@dataclass(frozen=True)
class _Pair(Arguments[Tensor]):
    """New and old log-probs, and the steps of a ratio."""

    logprobs: Tensor
    old_logprobs: Tensor

    def log_ratio(self, mask: Tensor) -> Tensor:
        """[B, T] float64, 0 in masked slots."""
        new, old = (torch.where(mask, x, 0).double() for x in (self.logprobs, self.old_logprobs))
        return (new - old).clamp(max=_LARGEST)


def _lengths(mask: Tensor) -> Tensor:
    return mask.sum(1).clamp(min=1)


@dataclass(frozen=True)
class SequenceRatio(_Pair):
    """The arguments of :func:`sequence_ratio`."""

    mask: Tensor
    original = staticmethod(sequence_ratio)


@fault_of(SequenceRatio)
def ratio_of_the_summed_log_ratio(x: SequenceRatio) -> Tensor:
    """exp of the sum instead of the mean: 0.05 for 0.99 on 300 tokens."""
    return x.log_ratio(x.mask).sum(1).exp().float()


@fault_of(SequenceRatio)
def mean_log_ratio_over_all_slots(x: SequenceRatio) -> Tensor:
    """The sum is divided by T, padding included."""
    return x.log_ratio(x.mask).mean(1).exp().float()


@fault_of(SequenceRatio)
def mean_of_token_ratios(x: SequenceRatio) -> Tensor:
    """The arithmetic mean of the tokens' ratios instead of the geometric one."""
    ratios = torch.where(x.mask, x.log_ratio(x.mask).exp(), 0)
    return torch.where(x.mask.any(1), ratios.sum(1) / _lengths(x.mask), 1).float()


@fault_of(SequenceRatio)
def root_of_the_product_of_ratios(x: SequenceRatio) -> Tensor:
    """The product of the tokens' FP32 ratios, which overflows on the way, to the power 1 / n."""
    return x.log_ratio(x.mask).float().exp().prod(1).pow(1 / _lengths(x.mask))


@fault_of(SequenceRatio)
def sequence_ratio_in_input_dtype(x: SequenceRatio) -> Tensor:
    """Difference and mean in the format of the log-probs."""
    d = torch.where(x.mask, x.logprobs, 0) - torch.where(x.mask, x.old_logprobs, 0)
    return (d.sum(1) / _lengths(x.mask).to(d.dtype)).float().exp()


@fault_of(SequenceRatio)
def sequence_ratio_without_a_gradient(x: SequenceRatio) -> Tensor:
    """The ratio is taken under no_grad."""
    return x.right(logprobs=x.logprobs.detach())


@dataclass(frozen=True)
class Weights(Arguments[Tensor]):
    """The arguments of :func:`importance_weights`, and weights by autograd."""

    train_logprobs: Tensor
    rollout_logprobs: Tensor
    mask: Tensor
    level: str
    mode: str
    cap: float
    original = staticmethod(importance_weights)

    def capped(self, weight: Tensor) -> Tensor:
        """The weights in their mode, 0 in masked slots."""
        above = self.cap if self.mode == "truncate" else 0.0
        return torch.where(self.mask, torch.where(weight > self.cap, above, weight), 0).float()

    def log_ratio(self) -> Tensor:
        """[B, T] float64, 0 in masked slots."""
        given = self.train_logprobs, self.rollout_logprobs
        train, rollout = (torch.where(self.mask, x, 0).double() for x in given)
        return train - rollout


@fault_of(Weights)
def geometric_weight_for_a_sequence(x: Weights) -> Tensor:
    """exp of the mean log-ratio where that of the sum was asked for."""
    return x.right(level="geometric" if x.level == "sequence" else x.level)


@fault_of(Weights)
def sequence_weight_for_a_geometric_one(x: Weights) -> Tensor:
    """exp of the summed log-ratio where that of the mean was asked for."""
    return x.right(level="sequence" if x.level == "geometric" else x.level)


@fault_of(Weights)
def token_weights_for_a_sequence(x: Weights) -> Tensor:
    """The level is ignored: every token gets its own weight."""
    return x.right(level="token")


@fault_of(Weights)
def rejected_weights_truncated(x: Weights) -> Tensor:
    """A weight above the cap becomes the cap where it should be 0."""
    return x.right(mode="truncate")


@fault_of(Weights)
def tokens_capped_before_their_product(x: Weights) -> Tensor:
    """Every token's ratio is capped before the ratios of the sequence are multiplied."""
    if x.level != "sequence":
        return x.right()
    capped = x.log_ratio().clamp(max=torch.tensor(x.cap).log().item())
    return x.capped(capped.sum(1, keepdim=True).exp().expand(x.mask.shape))


@fault_of(Weights)
def rejected_infinity_times_zero(x: Weights) -> Tensor:
    """The weight is multiplied by whether it is kept: inf * 0 in FP32."""
    if x.mode == "truncate":
        return x.right()
    weight = replace(x, mode="truncate", cap=float("inf")).right()
    return weight * (weight <= x.cap)


@fault_of(Weights)
def broken_forward_rejected(x: Weights) -> Tensor:
    """What is not known to be below the cap is rejected: NaN becomes 0, and the step goes on."""
    weight = x.right()
    return torch.where(weight <= x.cap, weight, 0)


@fault_of(Weights)
def inverted_weights(x: Weights) -> Tensor:
    """Rollout over train instead of train over rollout."""
    return x.right(train_logprobs=x.rollout_logprobs, rollout_logprobs=x.train_logprobs)


@fault_of(Weights)
def weights_with_a_gradient(x: Weights) -> Tensor:
    """The weight is not detached: the correction is trained as well."""
    if x.level != "token":
        return x.right()
    return x.capped(x.log_ratio().clamp(max=_LARGEST).exp())


@fault_of(Weights)
def masked_tokens_weigh_one(x: Weights) -> Tensor:
    """A masked slot keeps the weight exp(0)."""
    return torch.where(x.mask, x.right(), 1)


@fault_of(Weights)
def normalised_weights(x: Weights) -> Tensor:
    """The weights are divided by their mean over real tokens, without being asked to."""
    weight = x.right()
    return weight / (weight.sum() / x.mask.sum().clamp(min=1)).clamp(min=1e-8)


@dataclass(frozen=True)
class Clipped(_Pair):
    """The arguments of a clipped loss, and its steps."""

    advantages: Tensor
    mask: Tensor
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
class Gspo(Clipped):
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
    mean = (x.log_ratio(x.mask).sum(1) / _lengths(x.mask)).float()
    return x.over(x.surrogate(mean.exp(), x.real_advantages().float()))


@fault_of(Gspo)
def gspo_of_token_ratios(x: Gspo) -> Tensor:
    """Every token is clipped by its own ratio, as in PPO."""
    terms = x.surrogate(x.log_ratio(x.mask).exp(), x.real_advantages()[:, None])
    return x.over(torch.where(x.mask, terms, 0).sum(1) / _lengths(x.mask))


@fault_of(Gspo)
def gspo_of_the_summed_log_ratio(x: Gspo) -> Tensor:
    """The ratio of the response is not taken to the power 1 / n."""
    ratio = x.log_ratio(x.mask).sum(1).clamp(max=_LARGEST).exp()
    return x.over(x.surrogate(ratio, x.real_advantages()))


@fault_of(Gspo)
def gspo_mean_over_tokens(x: Gspo) -> Tensor:
    """A response weighs by its length."""
    ratio = (x.log_ratio(x.mask).sum(1) / _lengths(x.mask)).exp()
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
    d = (x.logprobs - x.old_logprobs).double().clamp(max=_LARGEST)
    ratio = (torch.where(x.mask, d - d.mean(), 0).sum(1) / _lengths(x.mask)).exp()
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
class Dapo(Clipped):
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
    advantages, ratio = x.real_advantages(), x.log_ratio(x.mask).exp()
    terms = x.surrogate(ratio, advantages)
    limit = (x.dual_clip or torch.inf) * advantages.abs()
    return x.over(torch.where(advantages == 0, 0, torch.min(terms, 0.4 * limit)))


@fault_of(Dapo)
def dual_clip_of_the_wrong_side(x: Dapo) -> Tensor:
    """The larger of loss and dual clip: a harmful token counts c at least."""
    if x.dual_clip is None:
        return x.right()
    advantages = x.real_advantages()
    terms = x.surrogate(x.log_ratio(x.mask).exp(), advantages)
    return x.over(torch.where(advantages < 0, torch.max(terms, -x.dual_clip * advantages), terms))


@fault_of(Dapo)
def dapo_ratio_in_fp32(x: Dapo) -> Tensor:
    """exp of a log-ratio of 100 in FP32: 0 * inf behind the clip."""
    ratio, advantages = x.log_ratio(x.mask).float().exp(), x.real_advantages().float()
    terms = x.surrogate(ratio, advantages)
    limit = -(x.dual_clip or torch.inf) * advantages
    return x.over(torch.where(advantages < 0, torch.min(terms, limit), terms))


@fault_of(Dapo)
def dapo_mean_of_sequence_means(x: Dapo) -> Tensor:
    """Token-level loss as a mean of the sequences' means."""
    terms = torch.where(x.mask, x.surrogate(x.log_ratio(x.mask).exp(), x.real_advantages()), 0)
    if x.dual_clip or x.denominator:
        return x.right()
    return ((terms.sum(1) / _lengths(x.mask)).sum() / x.mask.any(1).sum().clamp(min=1)).float()


@fault_of(Dapo)
def dapo_denominator_ignored(x: Dapo) -> Tensor:
    """Every rank divides by its own tokens."""
    return x.right(denominator=None)


@fault_of(Dapo)
def dapo_divided_by_slots(x: Dapo) -> Tensor:
    """The share of the part is taken from its slots: packing and padding change the loss."""
    return x.right() * x.mask.sum() / x.mask.numel()


@dataclass(frozen=True)
class Cispo(Clipped):
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
        return self.log_ratio(self.mask).exp().clamp(1 - self.clip_low, 1 + self.clip_high)


@fault_of(Cispo)
def cispo_weight_not_detached(x: Cispo) -> Tensor:
    """The weight carries a gradient of its own."""
    return x.loss(x.weight())


@fault_of(Cispo)
def cispo_drops_clipped_tokens(x: Cispo) -> Tensor:
    """Tokens that PPO would clip do not learn: what CISPO is there to avoid."""
    ratio, advantages = x.log_ratio(x.mask).exp().detach(), x.real_advantages()
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
    weight = x.log_ratio(x.mask).exp().detach()
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


@dataclass(frozen=True)
class PolicyPart(Arguments[Tensor]):
    """The arguments of :func:`policy_loss` on a part of a batch."""

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    clip_range: float
    denominator: float | None = None
    original = staticmethod(policy_loss)


@fault_of(PolicyPart)
def policy_denominator_ignored(x: PolicyPart) -> Tensor:
    """Every micro-batch divides by its own tokens."""
    return x.right(denominator=None)


@fault_of(PolicyPart)
def policy_mean_of_sequence_means_in_a_part(x: PolicyPart) -> Tensor:
    """With a denominator the means of the sequences are summed, each times its slots."""
    if x.denominator is None:
        return x.right()
    rows: list[Any] = [
        x.right(
            logprobs=x.logprobs[b : b + 1],
            old_logprobs=x.old_logprobs[b : b + 1],
            advantages=x.advantages[b : b + 1],
            mask=x.mask[b : b + 1],
            denominator=None,
        )
        for b in range(len(x.mask))
    ]
    return torch.stack(rows).sum() * (x.mask.sum() / len(rows)) / x.denominator


@dataclass(frozen=True)
class ValuePart(Arguments[Tensor]):
    """The arguments of :func:`value_loss` on a part of a batch."""

    values: Tensor
    old_values: Tensor
    returns: Tensor
    mask: Tensor
    clip_range: float
    denominator: float | None = None
    original = staticmethod(value_loss)


@fault_of(ValuePart)
def value_denominator_ignored(x: ValuePart) -> Tensor:
    """The critic's loss is a mean in every micro-batch: K times the loss of the whole."""
    return x.right(denominator=None)


@fault_of(ValuePart)
def value_loss_nan_without_a_token(x: ValuePart) -> Tensor:
    """A rank whose part is padding alone divides 0 by 0."""
    if x.denominator is None:
        return x.right()
    own = x.mask.sum()
    return x.right(denominator=None) * (own / own) * own / x.denominator
