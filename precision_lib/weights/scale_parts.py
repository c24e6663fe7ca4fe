"""The scale of each part of a fused or stacked weight; None where its shape does not say."""

from collections.abc import Mapping
from math import prod

from precision_lib.weights import names
from precision_lib.weights.codes import QUANTISED
from precision_lib.weights.tensors import Tensor


def scales_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored name of each quantised weight -> its scale."""
    scales = {}
    for name, tensor in tensors.items():
        owner = names.scale_owner(name)
        if owner is not None and owner in tensors and tensors[owner].fmt in QUANTISED:
            scales[owner] = tensor
    return scales


def covers_expert(scale: Tensor, experts: int) -> bool:
    """Whether all parts of an expert have one scale."""
    return prod(scale.shape) in (1, experts)


def expert_scale(
    scale: Tensor, expert: tuple[int, int], part: tuple[int, int], rows: int
) -> Tensor | None:
    """The scale of one part of one expert: [E], [E, parts], or [E, rows or blocks, ...]."""
    if not scale.shape or scale.shape[0] != expert[1]:
        return scale if prod(scale.shape) == 1 else None
    each = prod(scale.shape[1:])
    first = expert[0] * each
    if len(scale.shape) == 1 or each == 1:
        return scale.part(((first, first + each),), ())
    if scale.shape[1] % part[1]:
        return None
    size = each // part[1]
    shape = (scale.shape[1] // part[1], *scale.shape[2:])
    first += part[0] * size
    return scale.part(((first, first + size),), shape)


def row_scale(scale: Tensor, part: int, sizes: list[int]) -> Tensor | None:
    """The scale of one part: one for all, one for each part, each row, or each block of rows."""
    if prod(scale.shape) == 1:
        return scale
    width = prod(scale.shape[1:])
    for block in (1, 128, max(sizes)):
        blocks = [-(-size // block) for size in sizes]
        if block == max(sizes):
            blocks = [1] * len(sizes)
        if sum(blocks) == scale.shape[0]:
            first = sum(blocks[:part])
            ranges = ((first * width, (first + blocks[part]) * width),)
            return scale.part(ranges, (blocks[part], *scale.shape[1:]))
    return None
