"""Columns as flat arrays of slots: padded arrays and ragged lists take the same way.

All columns of a dump must have the rows and the row lengths of ``rollout_logprobs``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_lib.mismatch.schema import Array, DumpError


@dataclass(frozen=True)
class Rows:
    """Slots of all rows, one row after the other.

    Attributes:
        values: [all slots]. lengths: [N] int64, slots of each row.
    """

    values: Array
    lengths: Array

    def numbers(self) -> Array:
        """[all slots] int64, the row of each slot."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def slots(self) -> Array:
        """[all slots] int64, the place of each slot in its row."""
        starts: Array = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        return np.arange(len(self.values)) - starts

    def split(self) -> list[Array]:
        """N arrays, one a row."""
        return np.split(self.values, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    def last(self, lengths: Array) -> "Rows":
        """The last ``lengths`` [N] slots of each row."""
        counts = np.minimum(lengths, self.lengths)
        from_end = np.repeat(self.lengths, self.lengths) - self.slots()
        return Rows(self.values[from_end <= np.repeat(counts, self.lengths)], counts)


def rows_of(column: Any, name: str, source: str) -> Rows:
    """A column of numbers as :class:`Rows`.

    Raises:
        DumpError: no numbers, or neither [N, T] nor N rows of their own lengths.
    """
    if isinstance(column, Rows):
        return column
    if isinstance(column, np.ndarray):
        _check_type(column, name, source)
        if column.ndim != 2:
            raise DumpError(
                f"{source}: column {name} has the shape {list(column.shape)}, not [N, T]"
            )
        return Rows(column.ravel(), np.full(len(column), column.shape[1], np.int64))
    if not isinstance(column, list):
        raise DumpError(
            f"{source}: column {name} is a {type(column).__name__}, not rows of numbers"
        )
    rows = [_row(row, number, name, source) for number, row in enumerate(column)]
    lengths = np.array([len(row) for row in rows], np.int64)
    return Rows(np.concatenate(rows) if rows else np.zeros(0), lengths)


def _row(row: Any, number: int, name: str, source: str) -> Array:
    try:
        values = np.asarray([np.nan if x is None else x for x in row])
    except (TypeError, ValueError):
        raise DumpError(f"{source}: column {name}, row {number} is no list of numbers") from None
    if values.size == 0:
        return np.zeros(0)
    _check_type(values, f"{name}, row {number}", source)
    if values.ndim != 1:
        raise DumpError(
            f"{source}: column {name}, row {number} has the shape {list(values.shape)}, not [T]"
        )
    return values


def _check_type(values: Array, name: str, source: str) -> None:
    if values.dtype.kind not in "biuf":
        raise DumpError(f"{source}: column {name} is of type {values.dtype}; give numbers")


def flat(column: Any, name: str, like: Rows, source: str) -> Array:
    """[all slots] of a column whose rows are as long as those of ``like``.

    Raises:
        DumpError: another number of rows, or a row of another length.
    """
    rows = rows_of(column, name, source)
    if len(rows.lengths) != len(like.lengths):
        raise DumpError(
            f"{source}: column {name} has {len(rows.lengths)} rows, rollout_logprobs has "
            f"{len(like.lengths)}"
        )
    wrong = np.flatnonzero(rows.lengths != like.lengths)
    if len(wrong):
        row = int(wrong[0])
        raise DumpError(
            f"{source}: column {name} has {rows.lengths[row]} slots in row {row}, "
            f"rollout_logprobs has {like.lengths[row]}"
        )
    return rows.values


def flat_per_row(column: Any, name: str, count: int, source: str) -> Array | None:
    """[N] numbers, one a row; one number stands for all rows. None for no column.

    Raises:
        DumpError: no numbers, another number of rows, or not finite.
    """
    if column is None:
        return None
    values = np.asarray(column) if not isinstance(column, list) else _row(column, 0, name, source)
    if values.ndim == 0:
        values = np.full(count, values)
    _check_type(values, name, source)
    if values.shape != (count,):
        raise DumpError(
            f"{source}: column {name} has the shape {list(values.shape)}, not [{count}]"
        )
    if not np.isfinite(values.astype(np.float64)).all():
        raise DumpError(f"{source}: column {name} is not finite in some row")
    return values
