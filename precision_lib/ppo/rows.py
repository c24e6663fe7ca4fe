"""Pieces of a logits tensor that fit a cache, one after the other.

``logits.float()`` of [4, 512, 32000] is 250 MiB, and writing it costs more time than the
arithmetic. So everything over the vocabulary is computed on a few rows at a time, in a buffer that
is used again.

S sequences of N rows, V vocabulary entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of one buffer. On a CPU it has to stay in the second-level cache; on a GPU it has to be
#: large enough to fill the device. Two buffers are the most that a caller holds.
_BUFFER_BYTES = {"cpu": 2**20, "cuda": 2**24}


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
    """An uninitialised buffer [n, V] of ``dtype`` for n rows of ``sequences`` [S, N, V], n <= N."""
    _, rows, width = sequences.shape
    limit = _BUFFER_BYTES.get(sequences.device.type, _BUFFER_BYTES["cpu"])
    fitting = max(1, limit // max(1, width * torch.finfo(dtype).bits // 8))
    return torch.empty(min(fitting, rows), width, dtype=dtype, device=sequences.device)


def row_pieces(sequences: Tensor, dtype: torch.dtype) -> Iterator[tuple[tuple[int, slice], Tensor]]:
    """Where, and a copy in ``dtype``, of a few rows at a time of ``sequences`` [S, N, V].

    The copy is one buffer, overwritten in the next turn; the caller may compute in place.
    """
    buffer = row_buffer(sequences, dtype)
    rows = sequences.shape[1]
    for sequence in range(sequences.shape[0]):
        for start in range(0, rows, max(1, len(buffer))):
            place = sequence, slice(start, min(start + len(buffer), rows))
            piece = sequences[place]
            yield place, buffer[: len(piece)].copy_(piece)


def fp32_or_wider(*tensors: Tensor) -> torch.dtype:
    """The widest format among float32 and the tensors' own: what the core computes and returns."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
