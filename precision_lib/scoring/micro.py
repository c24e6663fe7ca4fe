"""How sequences are cut into forwards, and the other cut that shows the noise of batching.

N sequences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

#: A forward; the same once more; the same sequences in another order and in other micro-batches.
FIRST, AGAIN, REBATCHED = "first", "again", "rebatched"
_EXCHANGED = ContextVar("exchanged", default=False)


@dataclass(frozen=True)
class Micro:
    """How N sequences are cut into forwards.

    Attributes:
        rows: sequences per forward.
        order: [M] sequence numbers in the order in which they are taken; each at least once.
    """

    rows: int
    order: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.split(self.order, self.rows))


def micro_batches(rows: int, count: int) -> Micro:
    """``count`` sequences in their order, ``rows`` per forward."""
    return Micro(rows, torch.arange(count))


def batches_of_run(rows: int, count: int, run: str) -> Micro:
    """``count`` sequences as ``run`` takes them, usually ``rows`` per forward."""
    if takes_other_shape(run):
        return Micro(other_rows(rows, count), torch.arange(count).flip(0))
    return micro_batches(rows, count)


def other_rows(rows: int, count: int) -> int:
    """Another number of rows per forward than ``rows`` of ``count``: a third, and 2 instead of 1.

    For noise floors: a row that went alone, because it is long, goes with another one.
    """
    return max(1, min(rows, count) // 3) if rows > 1 else 2


def takes_other_shape(run: str) -> bool:
    """Whether a run takes the sequences in reversed order and in other micro-batches.

    Only ``REBATCHED`` does; inside :func:`batch_shapes_exchanged` every other run does.
    """
    return (run == REBATCHED) != _EXCHANGED.get()


@contextmanager
def batch_shapes_exchanged() -> Iterator[None]:
    """Measure in the other batch shape, so that its noise is seen in every metric."""
    token = _EXCHANGED.set(True)
    try:
        yield
    finally:
        _EXCHANGED.reset(token)
