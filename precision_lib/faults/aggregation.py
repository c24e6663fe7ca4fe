"""Wrong means of a batch: one mutation each, the rest in float64 and differentiated by autograd.

``catalogue`` says where each was seen. All tensors are [B, T]; ``mask`` is True for a real token.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from precision_lib import arguments
from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.aggregation import aggregate


@dataclass(frozen=True)
class Aggregate(arguments.Aggregate[Tensor, Tensor], Arguments[Tensor]):
    """The arguments of :func:`aggregate`, and its steps in float64."""

    denominator: float | None = None
    original = staticmethod(aggregate)

    def real(self) -> Tensor:
        """[B, T] float64, 0 in masked slots."""
        return torch.where(self.mask, self.values, 0).double()

    def rows(self) -> Tensor:
        """[B] sum of every sequence, or its mean."""
        lengths = self.mask.sum(1).clamp(min=1) if self.mode == "sequence_mean" else 1
        return self.real().sum(1) / lengths

    def count(self) -> Tensor:
        """What the mode counts in this call, at least 1."""
        over = self.mask if self.mode == "token_mean" else self.mask.any(1)
        return over.sum().clamp(min=1)

    def over(self, denominator: object) -> Tensor:
        """The sum over a denominator."""
        return (self.rows().sum() / denominator).float()  # type: ignore[operator]  # number or tensor

    def given(self) -> float:
        """The denominator of the call, or its own count."""
        return float(self.count()) if self.denominator is None else self.denominator


@fault_of(Aggregate)
def denominator_ignored(x: Aggregate) -> Tensor:
    """Every part divides by what it counts itself."""
    return x.over(x.count() if x.mode != "constant" else x.denominator)


@fault_of(Aggregate)
def mean_of_chunk_means(x: Aggregate) -> Tensor:
    """The batch is worked off in chunks of four sequences; their means are averaged."""
    chunks = [
        replace(x, values=v, mask=m, denominator=None)
        for v, m in zip(x.values.split(4), x.mask.split(4), strict=True)
    ]
    if x.mode == "constant":
        return x.right()
    means = torch.stack([chunk.over(chunk.count()).double() for chunk in chunks])
    return (means.mean() * x.count() / x.given()).float()


@fault_of(Aggregate)
def aggregated_sequence_means(x: Aggregate) -> Tensor:
    """A mean over tokens is taken as the mean of the sequences' means."""
    if x.mode != "token_mean":
        return x.right()
    sequences = replace(x, mode="sequence_mean", denominator=None).right()
    return (sequences * x.count() / x.given()).float()


@fault_of(Aggregate)
def padding_counted_in_a_mean(x: Aggregate) -> Tensor:
    """Without a denominator the slots are counted instead of the tokens."""
    if x.mode != "token_mean" or x.denominator is not None:
        return x.right()
    return x.over(x.mask.numel())


@fault_of(Aggregate)
def share_of_a_part_by_its_slots(x: Aggregate) -> Tensor:
    """A part weighs as many slots as it has: its mean over slots times its tokens over D."""
    return (x.right().double() * x.mask.sum() / x.mask.numel()).float()


@fault_of(Aggregate)
def empty_sequences_counted(x: Aggregate) -> Tensor:
    """B is counted, sequences without a real token included."""
    if x.mode not in ("sequence_mean", "sequence_mean_token_sum") or x.denominator is not None:
        return x.right()
    return x.over(len(x.mask))


@fault_of(Aggregate)
def divided_by_its_own_count_as_well(x: Aggregate) -> Tensor:
    """The mean of the part is divided by the denominator of the whole."""
    return x.over(x.count() * x.given()) if x.denominator is not None else x.right()


@fault_of(Aggregate)
def part_without_a_token_is_nan(x: Aggregate) -> Tensor:
    """The mean of the part times its share of the tokens: 0 / 0 for a rank with padding alone."""
    if x.mode != "token_mean":
        return x.right()
    own = x.mask.sum()
    return (x.real().sum() / own * (own / x.given())).float()


@fault_of(Aggregate)
def gradient_of_the_last_chunk_alone(x: Aggregate) -> Tensor:
    """The loss is right; of all chunks of four sequences the last one has a gradient."""
    first = max(0, (len(x.mask) - 1) // 4 * 4)
    values = torch.cat([x.values[:first].detach(), x.values[first:]])
    return x.right(values=values)


@fault_of(Aggregate)
def gradient_divided_by_accumulation_twice(x: Aggregate) -> Tensor:
    """The loss is right; its gradient is divided by the number of parts of the batch once more."""
    parts = max(1.0, x.given() / float(x.count()))
    return x.right() / parts + x.right(values=x.values.detach()) * (1 - 1 / parts)


@fault_of(Aggregate)
def lengths_end_at_the_last_token(x: Aggregate) -> Tensor:
    """A sequence is as long as the place of its last real token: holes are counted."""
    if x.mode != "token_mean" or x.denominator is not None:
        return x.right()
    place = torch.arange(1, x.mask.shape[1] + 1, device=x.mask.device) * x.mask
    return x.over(place.amax(1).sum().clamp(min=1))


@fault_of(Aggregate)
def real_tokens_taken_from_the_left(x: Aggregate) -> Tensor:
    """The mask is made again from lengths: a sequence that is padded on the left is cut off."""
    ahead = torch.arange(x.mask.shape[1], device=x.mask.device) < x.mask.sum(1, keepdim=True)
    return x.right(mask=ahead, denominator=x.given())


@fault_of(Aggregate)
def denominator_through_bf16(x: Aggregate) -> Tensor:
    """The number of tokens is kept in bf16, which rounds it from 257 on."""
    return x.over(torch.tensor(x.given()).bfloat16().double())


@fault_of(Aggregate)
def aggregated_in_input_dtype(x: Aggregate) -> Tensor:
    """The sum runs in the format of the losses."""
    values = torch.where(x.mask, x.values, 0)
    total = (
        values.sum()
        if x.mode != "sequence_mean"
        else (values.sum(1) / x.mask.sum(1).clamp(min=1).to(values.dtype)).sum()
    )
    return total.float() / x.given()


@fault_of(Aggregate)
def aggregated_by_product_with_mask(x: Aggregate) -> Tensor:
    """Padding is multiplied by 0: a NaN in a masked slot is a NaN of the loss."""
    lengths = x.mask.sum(1).clamp(min=1) if x.mode == "sequence_mean" else 1
    return ((x.values.double() * x.mask).sum(1) / lengths).sum().div(x.given()).float()
