"""One batch cut into parts in the ways that trainers do, and the names of what goes wrong.

The hazard. A loss that divides by what it counts in its own part is right on the whole batch, and
on parts of equal size. It then trains with another learning rate for every split, and nothing
else shows it.

A part is an index [b, t] into the flat slots of the whole batch [B, T]; -1 is a new slot, which is
masked. So a loss of a part has its tokens in another place, and its gradient can be put back.
``mask[b, t]`` is True for a real token.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from precision_lib.conformance.inputs import Inputs

Part = Tensor
#: mask [B, T] -> parts; the sizes of the parts depend on the mask alone.
Cut = Callable[[Tensor], list[Part]]

#: Slots in a row of packed tokens.
_PACK = 13


def _slots(mask: Tensor) -> Tensor:
    return torch.arange(mask.numel()).view(mask.shape)


def whole(mask: Tensor) -> list[Part]:
    """The batch as it is."""
    return [_slots(mask)]


def micro_batches(mask: Tensor) -> list[Part]:
    """Consecutive sequences: one in the first part, then two, then four, and so on."""
    slots, parts, start = _slots(mask), [], 0
    while start < len(slots):
        parts.append(slots[start : 2 * start + 1])
        start = 2 * start + 1
    return parts


def ranks(mask: Tensor) -> list[Part]:
    """Sequences dealt to ranks, each padded to its own longest; the last rank has padding alone."""
    slots, count = _slots(mask), 2 + len(mask) % 3
    dealt = [slots[rank::count] for rank in range(count) if rank < len(slots)]
    trimmed = [part[:, : _longest(mask.flatten()[part])] for part in dealt]
    return [*trimmed, torch.full((1, 3), -1)]


def _longest(mask: Tensor) -> int:
    columns = mask.any(0).nonzero()
    return int(columns.max()) + 1 if len(columns) else 1


def packed(mask: Tensor) -> list[Part]:
    """All real tokens one behind the other, in rows of 13 with padding in the last ones."""
    real = _slots(mask)[mask]
    rows = -(-len(real) // _PACK)
    filled = torch.nn.functional.pad(real, (0, (rows + 1) * _PACK - len(real)), value=-1)
    return list(filled.view(rows + 1, 1, _PACK)) if rows < 3 else [filled.view(rows + 1, _PACK)]


def left_padded(mask: Tensor) -> list[Part]:
    """Every sequence moved to the right end of its row, behind its masked slots."""
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    return [torch.nn.functional.pad(_slots(mask).gather(1, order), (1, 0), value=-1)]


def without_masked_slots(mask: Tensor) -> list[Part]:
    """Masked slots taken out, also between real tokens; rows filled up at the right."""
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
    slots = _slots(mask).gather(1, order)
    real_slots = torch.where(mask.gather(1, order), slots, -1)
    return [real_slots[:, : max(int(mask.sum(1).max()), 1)]]


def doubled_masked_slots(mask: Tensor) -> list[Part]:
    """A masked slot in front of every slot that is there."""
    slots = _slots(mask)
    return [torch.stack([torch.full_like(slots, -1), slots], -1).flatten(1)]


def context_shards(mask: Tensor) -> list[Part]:
    """Every sequence cut into two or three pieces, one for each rank of a context-parallel group.

    A piece may hold no real token at all.
    """
    pieces = torch.tensor_split(_slots(mask), 2 + len(mask) % 2, dim=1)
    return [piece for piece in pieces if piece.numel()]


def part_of(inputs: Inputs, part: Part, filler: float) -> Inputs:
    """The inputs of a part: tensors [B, T] by slot, [B] by sequence, ``filler`` in new slots."""
    mask = inputs["mask"]
    new, flat = part < 0, part.clamp(min=0)
    width = max(mask.shape[1], 1)
    row_of = torch.where(new.all(1), 0, flat.amax(1) // width)

    def taken(x: Tensor) -> Tensor:
        if x.dim() == 1:
            return x[row_of]
        chosen = x.flatten()[flat]
        return chosen & ~new if x.dtype == torch.bool else chosen.masked_fill(new, filler)

    return inputs.each(taken)


def put_back(gradients: Sequence[Tensor], parts: Sequence[Part], mask: Tensor) -> Tensor:
    """The gradient of the sum of the parts' losses, [B, T] float64."""
    total = torch.zeros(mask.numel() + 1, dtype=torch.float64)
    for gradient, part in zip(gradients, parts, strict=True):
        place = torch.where(part < 0, mask.numel(), part)
        total.index_add_(0, place.flatten(), gradient.double().flatten())
    return total[:-1].view(mask.shape)


def known_defects(
    terms: Tensor, mask: Tensor, parts: Sequence[Part], denominator: float, *, of_sequences: bool
) -> dict[str, float]:
    """What known mistakes give for the sum of the parts' losses, by their names.

    Args:
        terms: [B, T] float64, what every token adds to the sum that the denominator divides.
        of_sequences: the denominator counts sequences with a real token, not tokens.
    """
    cut = [part_of(Inputs({"x": terms, "mask": mask}), part, 0.0) for part in parts]
    sums = [float(torch.where(part["mask"], part["x"], 0).sum()) for part in cut]
    counts = [_counted(part["mask"], of_sequences) for part in cut]
    slots = [len(part) if of_sequences else part.numel() for part in parts]
    total, own = math.fsum(sums), _counted(mask, of_sequences)
    means = math.fsum(map(_over, sums, counts))
    padded = math.fsum(map(_over, sums, slots))
    real = max(1, sum(map(bool, counts)))
    of_parts = {
        "mean of micro-batch means": means / len(parts),
        "mean of the means of parts that hold a token": means / real,
        "sum of micro-batch means: the denominator is ignored": means,
        "padding is counted, in a mean of micro-batch means": padded / len(parts),
        "divided by the number of parts as well": total / denominator / len(parts),
        "multiplied by the number of parts": total / denominator * len(parts),
        "the last part alone": sums[-1] / denominator,
        "the first part alone": sums[0] / denominator,
    }
    share = own / denominator
    shares = [s * c / n for s, c, n in zip(sums, counts, slots, strict=True)]
    of_batch = {
        "the denominator is ignored": total / max(own, 1),
        "padding is counted, the denominator is ignored": padded,
        "padding is counted": total / sum(slots),
        "padding is counted in the share of a part": math.fsum(shares) / denominator,
        "a sum without its denominator": total,
        "the denominator is used twice": total / denominator**2,
        "divided by the denominator and by the count of the part": means / denominator,
        "mean of sequence means": share * _mean_of_chunks(terms, mask, 1, of_sequences=False),
    }
    chunks = {
        f"mean of micro-batch means, in chunks of {size} sequences{empty}": share
        * _mean_of_chunks(terms, mask, size, of_sequences=of_sequences, count_empty=bool(empty))
        for size in (1, 2, 4, 8, 16, 32, 48)
        for empty in ("", ", those without a token included")
        if size < len(mask)
    }
    return (of_parts if len(parts) > 1 else {}) | of_batch | chunks


def _counted(mask: Tensor, of_sequences: bool) -> int:
    """Real tokens, or sequences with one."""
    return int(mask.any(1).sum() if of_sequences else mask.sum())


def _over(total: float, count: int) -> float:
    return total / count if count else 0.0


def _mean_of_chunks(
    terms: Tensor, mask: Tensor, size: int, *, of_sequences: bool, count_empty: bool = False
) -> float:
    """The mean of the means of chunks of ``size`` sequences, with or without empty ones."""
    pairs = zip(terms.split(size), mask.split(size), strict=True)
    means = [
        _over(float(torch.where(m, t, 0).sum()), _counted(m, of_sequences))
        for t, m in pairs
        if count_empty or m.any()
    ]
    return math.fsum(means) / max(len(means), 1)


def name_of(got: float, want: float, defects: Mapping[str, float]) -> str:
    """The known defect that gives what was got, or the factor to what was wanted.

    The nearest number is taken, of equal ones the first. A result in 16 bits has an error, so that
    a number within 2^-7 counts as equal.
    """
    if got != got:
        return "the sum of the parts is NaN: a part without a token, or what a masked slot holds"
    wrong = {k: v for k, v in defects.items() if abs(v - want) > 2.0**-6 * abs(want)}
    name = min(wrong, key=lambda k: abs(got - wrong[k]), default="")
    if name and abs(got - wrong[name]) <= 2.0**-7 * abs(wrong[name]):
        return name
    return f"{got / want:.6g} times the whole" if want else "not the whole"


def defect_of_gradient(got: Tensor, want: Tensor, parts: Sequence[Part]) -> str:
    """What is wrong with a gradient [B, T] beside a right loss, in words."""
    used = want != 0
    lost = used & (got == 0)
    if torch.equal(got[~lost], want[~lost]):
        return (
            f"{int(lost.sum())} of {int(used.sum())} tokens that should have a gradient have none"
        )
    factors = []
    for part in parts:
        place = part[part >= 0]
        inside = used.flatten()[place]
        ratios = (got.flatten()[place] / want.flatten()[place])[inside]
        if len(ratios) and not torch.allclose(ratios, ratios[0], rtol=2.0**-7, atol=0.0):
            return "the gradient is another one"
        factors += [float(ratios[0])] if len(ratios) else []
    if len(set(factors)) == 1:
        return f"the gradient is {factors[0]:.4g} times that of the whole batch"
    listed = ", ".join(f"{factor:.4g}" for factor in factors[:6])
    return f"the gradient of each part has a factor of its own: {listed}"
