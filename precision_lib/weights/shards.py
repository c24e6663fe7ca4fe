"""Which part of a whole tensor a rank of a tensor-parallel engine holds; the shapes say.

Column-parallel layers cut rows of [N, K], row-parallel ones cut columns, others are replicated.
Where there are more ranks than key-value heads, several ranks hold the same rows. A vocabulary is
padded before it is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from precision_lib.weights import names
from precision_lib.weights.tensors import (
    DataTensor,
    Tensor,
    columns_key,
    elements,
    part_key,
)

#: vLLM and SGLang pad the vocabulary to a multiple of it.
VOCABULARY = 64


@dataclass(frozen=True)
class Cut:
    """Rows (axis 0) or columns (axis 1) ``start`` to ``stop`` of a tensor; axis None is all."""

    axis: int | None
    start: int = 0
    stop: int = 0

    def of(self, tensor: Tensor) -> Tensor | None:
        """The part; None where a manifest does not hold it."""
        if self.axis is None:
            return tensor
        if self.axis == 1:
            return tensor.columns(self.start, self.stop)
        width = elements(tensor) // tensor.shape[0]
        shape = (self.stop - self.start, *tensor.shape[1:])
        return tensor.part(((self.start * width, self.stop * width),), shape)

    def words(self) -> str:
        """For a stored name."""
        if self.axis is None:
            return ""
        return f"[{'' if self.axis == 0 else ':, '}{self.start}:{self.stop}]"


def cut_for(
    shared: str, whole: tuple[int, ...], shard: tuple[int, ...], rank: int, ranks: int
) -> Cut | None:
    """How the shape ``shard`` of one rank follows from ``whole``; None where it does not."""
    if whole == shard or not whole or len(whole) != len(shard):
        return Cut(None) if whole == shard else None
    rows, count = whole[0], shard[0]
    if count and whole[1:] == shard[1:]:
        if names.is_padded(shared):
            return Cut(0, min(rank * count, rows), min((rank + 1) * count, rows))
        parts = rows // count
        if rows % count or ranks % parts:
            return None
        place = rank // (ranks // parts)
        return Cut(0, place * count, (place + 1) * count)
    if len(whole) == 2 and count == rows and shard[1] * ranks == whole[1]:
        return Cut(1, rank * shard[1], (rank + 1) * shard[1])
    return None


def shards_of(shared: str, tensor: DataTensor, ranks: int, groups: int | None) -> Iterator[Cut]:
    """The cuts that a manifest of a trainer holds for an engine of so many ranks."""
    if not tensor.shape:
        return
    rows = tensor.shape[0]
    if len(tensor.shape) == 2 and names.is_cut_by_columns(shared):
        width = tensor.shape[1]
        if width % ranks == 0:
            yield from (Cut(1, i * width // ranks, (i + 1) * width // ranks) for i in range(ranks))
        return
    if names.is_padded(shared):
        rows = -(-rows // VOCABULARY) * VOCABULARY
    parts = groups if groups and groups < ranks and names.is_key_or_value(shared) else ranks
    count = rows // parts
    for i in range(parts) if rows % parts == 0 else ():
        start, stop = i * count, min((i + 1) * count, tensor.shape[0])
        if start < stop:
            yield Cut(0, start, stop)


def recorded(shared: str, tensor: DataTensor, ranks: int, groups: int | None) -> dict[str, object]:
    """Name of a part -> what a manifest holds of it, for each shard of ``tensor``."""
    records: dict[str, object] = {}
    for cut in shards_of(shared, tensor, ranks, groups):
        part = cut.of(tensor)
        assert isinstance(part, DataTensor)
        width = elements(tensor) // tensor.shape[0]
        rows = part_key(((cut.start * width, cut.stop * width),))
        key = rows if cut.axis == 0 else columns_key(cut.start, cut.stop)
        records[key] = part.record(with_transposed=False)
    return records
