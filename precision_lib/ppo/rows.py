"""Pieces of a logits tensor that fit a cache, one after the other.

The hazard. ``logits.float()`` of [4, 512, 32000] is 250 MiB, a log-softmax of it 250 MiB more, and
writing them costs more time than the arithmetic. Worse than slow: the size tempts people to leave
the log-softmax in bf16. Everything over the vocabulary is therefore computed on a few rows at a
time, in a buffer that is used again.

N rows, V vocabulary entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of one buffer. On a CPU it has to stay in the second-level cache; on a GPU it has to be
#: large enough to fill the device. Two buffers are the most that a caller holds.
_BUFFER_BYTES = {"cpu": 2**20, "cuda": 2**24}


def row_buffer(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised buffer [n, V] of ``dtype`` for n rows of ``logits`` [N, V], 1 <= n <= N."""
    rows, width = logits.shape
    limit = _BUFFER_BYTES.get(logits.device.type, _BUFFER_BYTES["cpu"])
    fitting = max(1, limit // max(1, width * torch.finfo(dtype).bits // 8))
    return torch.empty(min(fitting, rows), width, dtype=dtype, device=logits.device)


def row_pieces(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Which rows, and a copy of them in ``dtype``, for all rows of ``logits`` [N, V].

    The copy is one buffer, overwritten in the next turn; the caller may compute in place.
    """
    buffer = row_buffer(logits, dtype)
    for start in range(0, len(logits), max(1, len(buffer))):
        piece = slice(start, min(start + len(buffer), len(logits)))
        yield piece, buffer[: piece.stop - start].copy_(logits[piece])


def fp32_or_wider(*tensors: Tensor) -> torch.dtype:
    """The widest format among float32 and the tensors' own: what the core computes and returns."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
