"""Wrong losses on a part of a batch: what a denominator of the whole batch is there to prevent.

``catalogue`` says where each was seen. All tensors are [B, T]; ``mask`` is True for a real token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib.faults.arguments import fault_of
from precision_lib.faults.losses import PolicyLoss, ValueLoss


@dataclass(frozen=True)
class PolicyPart(PolicyLoss):
    """The arguments of :func:`policy_loss` on a part of a batch."""

    denominator: float | None = None


@fault_of(PolicyPart)
def policy_denominator_ignored(x: PolicyPart) -> Tensor:
    """Every micro-batch divides by its own tokens."""
    return x.right(denominator=None)


@fault_of(PolicyPart)
def policy_mean_of_sequence_means_in_a_part(x: PolicyPart) -> Tensor:
    """With a denominator the means of the sequences are summed, each times its slots."""
    if x.denominator is None:
        return x.right()
    tensors = {name: value for name, value in vars(x).items() if isinstance(value, Tensor)}
    rows = [
        x.right(**{name: value[b : b + 1] for name, value in tensors.items()}, denominator=None)
        for b in range(len(x.mask))
    ]
    return torch.stack(rows).sum() * (x.mask.sum() / len(rows)) / x.denominator


@dataclass(frozen=True)
class ValuePart(ValueLoss):
    """The arguments of :func:`value_loss` on a part of a batch."""

    denominator: float | None = None


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
