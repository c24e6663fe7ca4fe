"""One pass over the values of two tensors, and digests of their rows and columns, in a stream.

A tensor is read as a matrix: of a vector each value is a row, of more axes the first one counts
rows. Memory grows with the number of rows and columns, not with their product.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights.codes import Codes, Values, cast, decode
from precision_lib.weights.relation import squeezed
from precision_lib.weights.tensors import DataTensor, elements

#: Codes of a row or column that are compared before the whole is hashed.
_START = 8


@dataclass(frozen=True)
class Survey:
    """How two tensors differ, after the trainer's was cast to the engine's format.

    Attributes:
        distance: norm of the difference over the trainer's norm.
        changed: number of values that differ. size: number of values.
        rows, columns: [R] and [C], where a value differs.
        only_zeros: every changed value is 0 at the engine.
        same_norm: the sums of squares agree to 1e-4, as those of one set of values do.
    """

    distance: float
    changed: int
    size: int
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]
    only_zeros: bool
    same_norm: bool


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that a tensor of ``shape`` is read as."""
    shape = squeezed(shape)
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape[1:], dtype=np.int64))


def row_pieces(tensor: DataTensor) -> Iterator[Codes]:
    """Whole rows of codes, [some rows, C]."""
    columns = as_matrix(tensor.shape)[1]
    return (codes.reshape(-1, columns) for codes in tensor.pieces(columns))


def value_pairs(trainer: DataTensor, engine: DataTensor) -> Iterator[tuple[Values, Values]]:
    """Whole rows of values of both; the tensors have one matrix shape."""
    for wanted, given in zip(row_pieces(trainer), row_pieces(engine), strict=True):
        yield decode(wanted, trainer.fmt), decode(given, engine.fmt)


def survey(trainer: DataTensor, engine: DataTensor) -> Survey:
    """Compare all values once."""
    rows: list[NDArray[np.bool_]] = []
    columns = np.zeros(as_matrix(engine.shape)[1], bool)
    squares = np.zeros(3)
    changed, only_zeros = 0, True
    for wanted, given in value_pairs(trainer, engine):
        exported = decode(cast(wanted, engine.fmt), engine.fmt)
        if not np.isfinite(np.vdot(exported, exported)):
            exported, given = without_common(exported, given)
        differs = exported != given
        rows.append(differs.any(axis=1))
        columns |= differs.any(axis=0)
        changed += int(np.count_nonzero(differs))
        only_zeros = only_zeros and not given[differs].any()
        with np.errstate(over="ignore", invalid="ignore"):
            for i, values in enumerate((given - exported, exported, given)):
                squares[i] += float(np.vdot(values, values))
    same = bool(abs(squares[1] - squares[2]) <= 1e-4 * squares[1])
    distance = float(np.sqrt(squares[0] / squares[1])) if squares[1] else float("inf")
    mask = np.concatenate(rows) if rows else np.zeros(0, bool)
    return Survey(distance, changed, elements(engine), mask, columns, only_zeros, same)


def without_common(wanted: Values, given: Values) -> tuple[Values, Values]:
    """Both with 0 where both are NaN, or the same infinity: the bits of a NaN mean nothing."""
    same = (np.isnan(wanted) & np.isnan(given)) | (np.isinf(wanted) & (wanted == given))
    zero = wanted.dtype.type(0)
    return np.where(same, zero, wanted), np.where(same, zero, given)


@functools.lru_cache(maxsize=16)
def line_starts(tensor: DataTensor, fmt: str, axis: int) -> frozenset[bytes]:
    """The first codes of each row (axis 0) or column (axis 1): of equal lines, equal ones.

    They exclude far faster than digests of whole lines.
    """
    rows, columns = as_matrix(tensor.shape)
    if axis == 0:
        parts = [piece[:, :_START] for piece in row_pieces(tensor)]
        starts = np.concatenate(parts) if parts else np.zeros((0, 1), np.uint8)
    else:
        count = min(rows, _START)
        part = tensor.part(((0, count * columns),), (count, columns))
        starts = part.codes().T
    return frozenset(row.tobytes() for row in _bytes(_exported(starts, tensor.fmt, fmt)))


def line_digests(tensor: DataTensor, fmt: str, axis: int) -> list[bytes]:
    """A digest of each row (axis 0) or column (axis 1) of the codes after a cast to ``fmt``."""
    if axis == 0:
        return [
            hashlib.sha256(row).digest()[:16]
            for piece in row_pieces(tensor)
            for row in _bytes(_exported(piece, tensor.fmt, fmt))
        ]
    hashes = [hashlib.sha256() for _ in range(as_matrix(tensor.shape)[1])]
    for piece in row_pieces(tensor):
        for one, column in zip(hashes, _bytes(_exported(piece, tensor.fmt, fmt).T), strict=True):
            one.update(column)
    return [one.digest()[:16] for one in hashes]


def _exported(codes: Codes, own: str, fmt: str) -> Codes:
    return codes if own == fmt else cast(decode(codes, own), fmt)


def _bytes(codes: Codes) -> NDArray[np.uint8]:
    """[N, bytes of a row]."""
    whole = np.ascontiguousarray(codes)
    return whole.view(np.uint8).reshape(len(whole), -1)
