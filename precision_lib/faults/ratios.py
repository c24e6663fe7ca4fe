"""Wrong ratios and importance weights: one mutation each, the rest in float64.

``catalogue`` says where each was seen. Log-probs are [B, T]; ``mask`` is True for a real token.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from precision_lib import arguments
from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.ratios import importance_weights, sequence_ratio

#: exp of it is finite in float64.
LARGEST = 700.0


class PairOfLogprobs(Arguments[Tensor]):
    """New and old log-probs, and the steps of a ratio; a base of dataclasses, and none itself."""

    logprobs: Tensor
    old_logprobs: Tensor
    mask: Tensor

    def log_ratio(self) -> Tensor:
        """[B, T] float64, 0 in masked slots."""
        pair = self.logprobs, self.old_logprobs
        new, old = (torch.where(self.mask, x, 0).double() for x in pair)
        return (new - old).clamp(max=LARGEST)


def lengths(mask: Tensor) -> Tensor:
    """[B] real tokens of each sequence, at least 1."""
    return mask.sum(1).clamp(min=1)


@dataclass(frozen=True)
class SequenceRatio(arguments.SequenceRatio[Tensor, Tensor], PairOfLogprobs):
    """The arguments of :func:`sequence_ratio`."""

    original = staticmethod(sequence_ratio)


@fault_of(SequenceRatio)
def ratio_of_the_summed_log_ratio(x: SequenceRatio) -> Tensor:
    """exp of the sum instead of the mean: 0.05 for 0.99 on 300 tokens."""
    return x.log_ratio().sum(1).exp().float()


@fault_of(SequenceRatio)
def mean_log_ratio_over_all_slots(x: SequenceRatio) -> Tensor:
    """The sum is divided by T, padding included."""
    return x.log_ratio().mean(1).exp().float()


@fault_of(SequenceRatio)
def mean_of_token_ratios(x: SequenceRatio) -> Tensor:
    """The arithmetic mean of the tokens' ratios instead of the geometric one."""
    ratios = torch.where(x.mask, x.log_ratio().exp(), 0)
    return torch.where(x.mask.any(1), ratios.sum(1) / lengths(x.mask), 1).float()


@fault_of(SequenceRatio)
def root_of_the_product_of_ratios(x: SequenceRatio) -> Tensor:
    """The product of the tokens' FP32 ratios, which overflows on the way, to the power 1 / n."""
    return x.log_ratio().float().exp().prod(1).pow(1 / lengths(x.mask))


@fault_of(SequenceRatio)
def sequence_ratio_in_input_dtype(x: SequenceRatio) -> Tensor:
    """Difference and mean in the format of the log-probs."""
    d = torch.where(x.mask, x.logprobs, 0) - torch.where(x.mask, x.old_logprobs, 0)
    return (d.sum(1) / lengths(x.mask).to(d.dtype)).float().exp()


@fault_of(SequenceRatio)
def sequence_ratio_without_a_gradient(x: SequenceRatio) -> Tensor:
    """The ratio is taken under no_grad."""
    return x.right(logprobs=x.logprobs.detach())


@dataclass(frozen=True)
class Weights(arguments.Weights[Tensor, Tensor], Arguments[Tensor]):
    """The arguments of :func:`importance_weights`, and weights by autograd."""

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
def rejected_at_the_cap(x: Weights) -> Tensor:
    """A weight that is the cap is rejected as those above it are."""
    weights = x.right()
    return torch.where(weights == x.cap, 0, weights) if x.mode == "mask" else weights


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
    return x.capped(x.log_ratio().clamp(max=LARGEST).exp())


@fault_of(Weights)
def masked_tokens_weigh_one(x: Weights) -> Tensor:
    """A masked slot keeps the weight exp(0)."""
    return torch.where(x.mask, x.right(), 1)


@fault_of(Weights)
def normalised_weights(x: Weights) -> Tensor:
    """The weights are divided by their mean over real tokens, without being asked to."""
    weight = x.right()
    return weight / (weight.sum() / x.mask.sum().clamp(min=1)).clamp(min=1e-8)
