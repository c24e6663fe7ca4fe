"""Pieces of a logits tensor that fit a cache, one after the other.

``logits.float()`` of [4, 512, 32000] is 250 MiB, and writing it costs more time than the
arithmetic. So everything over the vocabulary is computed on a few rows at a time, in a buffer that
is used again.

S sequences of N rows, V vocabulary entries.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of one buffer. On a CPU it has to stay in the second-level cache; on a GPU it has to be
#: large enough to fill the device. Two buffers are the most that a caller holds.
_BUFFER_BYTES = {"cpu": 2**20, "cuda": 2**24}


#: exp2(LOG2_E x) = exp(x). On some CPUs torch's exp takes four times as long as its exp2.
LOG2_E = math.log2(math.e)


def as_sequences(logits: Tensor) -> Tensor:
    """``logits`` [..., V] as [S, N, V] without a copy: one long sequence where that is a view.

    ``logits[:, :-1]``, as the shift makes it, is not: flattening it would copy all of it.
    """
    if logits.dim() < 3:
        return logits.reshape(1, -1, logits.shape[-1])
    logits = logits.flatten(0, -3)
    sequences, length, width = logits.shape
    if sequences == 1 or length == 1:
        return logits if sequences == 1 else logits.transpose(0, 1)
    if logits.stride(0) == length * logits.stride(1):
        return logits.view(1, sequences * length, width)
    return logits


def row_buffer(sequences: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised buffer [s, n, V] of ``dtype`` for pieces of ``sequences`` [S, N, V].

    n = N where a whole sequence fits, and then s is how many of them do; else s = 1.
    """
    count, rows, width = sequences.shape
    limit = _BUFFER_BYTES.get(sequences.device.type, _BUFFER_BYTES["cpu"])
    fitting = max(1, limit // max(1, width * torch.finfo(dtype).bits // 8))
    several = max(1, min(fitting // max(1, rows), count))
    shape = several, min(fitting, rows), width
    return torch.empty(shape, dtype=dtype, device=sequences.device)


def row_pieces(
    sequences: Tensor, dtype: torch.dtype
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Where, and a copy [s, n, V] in ``dtype``, of a few rows at a time of ``sequences`` [S, N, V].

    Several whole sequences at once where they fit: every piece costs a GPU some launches. The copy
    is one buffer, overwritten in the next turn; the caller may compute in place.
    """
    buffer = row_buffer(sequences, dtype)
    several, some, _ = buffer.shape
    for first in range(0, sequences.shape[0], several):
        for start in range(0, sequences.shape[1], max(1, some)):
            place = slice(first, first + several), slice(start, start + some)
            piece = sequences[place]
            yield place, fitted(buffer, piece).copy_(piece)


def fitted(buffer: Tensor, piece: Tensor) -> Tensor:
    """The part of ``buffer`` [s, n, V] that ``piece``, of at most its size, takes."""
    return buffer[: piece.shape[0], : piece.shape[1]]


def fp32_or_wider(*tensors: Tensor) -> torch.dtype:
    """The widest format among float32 and the tensors' own: what the core computes and returns."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
