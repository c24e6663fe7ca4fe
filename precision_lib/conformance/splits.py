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
from typing import Any

import torch
from torch import Tensor

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
    kept = torch.where(mask.gather(1, order), slots, -1)
    return [kept[:, : max(int(mask.sum(1).max()), 1)]]


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


def part_of(inputs: Mapping[str, Any], part: Part, filler: float) -> dict[str, Any]:
    """The inputs of a part: tensors [B, T] by slot, [B] by sequence, ``filler`` in new slots."""
    mask = inputs["mask"]
    new, flat = part < 0, part.clamp(min=0)
    width = max(mask.shape[1], 1)
    row_of = torch.where(new.all(1), 0, flat.amax(1) // width)

    def taken(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dim() == 1:
            return x[row_of]
        chosen = x.flatten()[flat]
        return chosen & ~new if x.dtype == torch.bool else chosen.masked_fill(new, filler)

    return {name: taken(x) for name, x in inputs.items()}


def put_back(gradients: Sequence[Tensor], parts: Sequence[Part], mask: Tensor) -> Tensor:
    """The gradient of the sum of the parts' losses, [B, T] float64."""
    total = torch.zeros(mask.numel() + 1, dtype=torch.float64)
    for gradient, part in zip(gradients, parts, strict=True):
        place = torch.where(part < 0, mask.numel(), part)
        total.index_add_(0, place.flatten(), gradient.double().flatten())
    return total[:-1].view(mask.shape)


def known_defects(
    terms: Tensor, mask: Tensor, parts: Sequence[Part], denominator: float
) -> dict[str, float]:
    """What known mistakes give for the sum of the parts' losses, by their names.

    Args:
        terms: [B, T] float64, loss of every token times what it weighs in the sum over the whole
            batch; their sum over ``denominator`` is right.
    """
    sums, tokens, slots, sequences = [], [], [], []
    for part in parts:
        inside = part_of({"x": terms, "mask": mask}, part, 0.0)
        sums.append(float(torch.where(inside["mask"], inside["x"], 0).sum()))
        tokens.append(int(inside["mask"].sum()))
        slots.append(part.numel())
        sequences.append(len(part))
    total, count = math.fsum(sums), len(parts)
    means = [_over(s, n) for s, n in zip(sums, tokens, strict=True)]
    padded = [_over(s, n) for s, n in zip(sums, slots, strict=True)]
    of_rows = [_over(s, n) for s, n in zip(sums, sequences, strict=True)]
    several = {
        "mean of micro-batch means": math.fsum(means) / count,
        "sum of micro-batch means: the denominator is ignored": math.fsum(means),
        "mean of the means of parts that hold a token": math.fsum(means)
        / max(1, sum(map(bool, tokens))),
        "sum of means over sequences: the denominator is ignored": math.fsum(of_rows),
        "mean of means over sequences": math.fsum(of_rows) / count,
        "divided by the number of parts as well": total / denominator / count,
        "the denominator times the number of parts is missing": total / denominator * count,
        "the last part alone": sums[-1] / denominator,
        "the first part alone": sums[0] / denominator,
    }
    single = {
        "padding is counted": math.fsum(padded),
        "padding is counted, in a mean of micro-batch means": math.fsum(padded) / count,
        "the denominator is ignored": total / max(sum(tokens), 1),
        "padding is counted, over the whole batch": total / sum(slots),
        "a sum without its denominator": total,
        "the denominator is used twice": total / denominator**2,
        "divided by the denominator and by the tokens of the part": math.fsum(means) / denominator,
        "divided by the denominator and by the sequences of the part": math.fsum(of_rows)
        / denominator,
        "mean of sequence means": _mean_of_rows(terms, mask),
    }
    chunks = {
        f"mean of the means of chunks of {size} sequences": _mean_of_chunks(terms, mask, size)
        for size in (1, 2, 4, 8, 16, 32)
        if size < len(mask)
    }
    return (several if count > 1 else {}) | single | chunks


def _over(total: float, count: int) -> float:
    return total / count if count else 0.0


def _mean_of_rows(terms: Tensor, mask: Tensor) -> float:
    sums, lengths = torch.where(mask, terms, 0).sum(1), mask.sum(1)
    return float((sums / lengths.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1))


def _mean_of_chunks(terms: Tensor, mask: Tensor, size: int) -> float:
    pairs = zip(terms.split(size), mask.split(size), strict=True)
    means = [_over(float(torch.where(m, t, 0).sum()), int(m.sum())) for t, m in pairs]
    return math.fsum(means) / len(means)


def name_of(got: float, want: float, defects: Mapping[str, float]) -> str:
    """The known defect that gives what was got, or the factor to what was wanted.

    Two names may give one number; the first is taken. A number counts as equal within 2^-12.
    """
    if got != got:
        return "the sum of the parts is NaN: a part without a token, or what a masked slot holds"
    for name, value in defects.items():
        if abs(got - value) <= 2.0**-12 * abs(value) and abs(value - want) > 2.0**-12 * abs(want):
            return name
    return f"{got / want:.6g} times the whole" if want else "not the whole"
