"""Where only rows or columns differ: zeros, rows in another order, a shard of another rank.

Tensor parallelism cuts projections into row shards or column shards. A shard at the wrong rank
shows as rows (columns) that stand elsewhere in the tensor, in a sibling that is fused with it, in
another tensor, or in older weights. Rows are compared by digests of their codes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precision_lib.weights import names
from precision_lib.weights.context import Context
from precision_lib.weights.survey import Survey, as_matrix, line_digests, line_starts
from precision_lib.weights.tensors import DataTensor, Tensor

Reason = tuple[str, str, bool]


@dataclass(frozen=True)
class _Lines:
    """The rows (axis 0) or columns (axis 1) of an engine's tensor that differ.

    Attributes:
        places: [D] which of them. total: how many there are. digests: of all of them.
    """

    axis: int
    places: NDArray[np.intp]
    total: int
    digests: list[bytes]
    fmt: str
    shape: tuple[int, int]

    @property
    def wanted(self) -> list[bytes]:
        return [self.digests[place] for place in self.places]

    def words(self) -> str:
        return f"{('rows', 'columns')[self.axis]} {spans(self.places)}"


def lines_explained(
    shared: str, trainer: DataTensor, engine: DataTensor, seen: Survey, context: Context
) -> Reason | None:
    """A reason that all differing rows, or all differing columns, have in common."""
    if seen.changed and seen.only_zeros:
        return "zero", f"{seen.changed} of {seen.size} values are 0", True
    shape = as_matrix(engine.shape)
    for axis, mask in ((0, seen.rows), (1, seen.columns)):
        if shape[1] == 1 and axis == 1:
            continue
        all_differ = bool(mask.all())
        if all_differ and not seen.same_norm and (axis == 1 or not _siblings(shared, context)):
            continue
        inside = _may_be_inside(shared, trainer, engine, axis, context)
        if all_differ and not inside:
            continue
        places = np.flatnonzero(mask)
        digests = line_digests(engine, engine.fmt, axis)
        lines = _Lines(axis, places, len(mask), digests, engine.fmt, shape)
        reason = _inside(shared, trainer, lines, context) if inside else None
        if reason is None and not all_differ:
            reason = _of_others(shared, lines, context)
        if reason is not None:
            return reason
    return None


def _may_be_inside(
    shared: str, trainer: DataTensor, engine: DataTensor, axis: int, context: Context
) -> bool:
    """Whether each line of the engine's begins as one of the trainer's, or of a sibling's."""
    fmt = engine.fmt
    known = line_starts(trainer, fmt, axis)
    columns = as_matrix(engine.shape)[1]
    for sibling in _siblings(shared, context) if axis == 0 else []:
        other = context.trainer[sibling].tensor
        if isinstance(other, DataTensor) and as_matrix(other.shape)[1] == columns:
            known |= line_starts(other, fmt, 0)
    return line_starts(engine, fmt, axis) <= known


def _inside(shared: str, trainer: DataTensor, lines: _Lines, context: Context) -> Reason | None:
    """The differing lines stand elsewhere in this tensor or in its siblings."""
    own = line_digests(trainer, lines.fmt, lines.axis)
    permuted = sorted(own) == sorted(lines.digests)
    if lines.shape[1] == 1:
        return ("swapped", "the values stand in another order", True) if permuted else None
    known = {digest: (shared, i) for i, digest in enumerate(own)}
    wanted = lines.wanted
    if any(digest not in known for digest in wanted) and lines.axis == 0:
        for sibling in _siblings(shared, context):
            other = context.trainer[sibling].tensor
            if isinstance(other, DataTensor) and as_matrix(other.shape)[1] == lines.shape[1]:
                for i, digest in enumerate(line_digests(other, lines.fmt, 0)):
                    known.setdefault(digest, (sibling, i))
    if any(digest not in known for digest in wanted):
        return None
    sources = [known[digest] for digest in wanted]
    owners = sorted({owner for owner, _ in sources})
    whose = " and ".join(context.trainer[owner].name for owner in owners)
    detail = f"{lines.words()} are those from {sources[0][1]} on of {whose}"
    if owners == [shared]:
        return "swapped" if permuted else "duplicated", detail, True
    others = [owner for owner in owners if owner != shared]
    copies = all(owner in context.equal for owner in others)
    return "duplicated" if copies else "swapped", detail, True


def _siblings(shared: str, context: Context) -> list[str]:
    """The trainer's other projections that an engine fuses with this one."""
    segments = shared.split(".")
    if len(segments) < 2:
        return []
    for rule in names.rules().fused:
        if segments[-2] in rule.parts:
            return [
                part for part in rule.within(segments) if part != shared and part in context.trainer
            ]
    return []


def _of_others(shared: str, lines: _Lines, context: Context) -> Reason | None:
    """The differing lines stand at the same place of older weights or of another tensor."""
    for side in context.older:
        for piece in side.pieces.get(shared, []):
            if _holds(piece.tensor, lines):
                return "stale", f"{lines.words()} are equal to {side.source.label}", True
    if lines.shape[1] == 1:
        return None
    for other in context.same_shape(shared):
        if _holds(context.trainer[other].tensor, lines):
            kind = "duplicated" if other in context.equal else "swapped"
            return kind, f"{lines.words()} are those of {context.trainer[other].name}", True
    return None


def _holds(tensor: Tensor, lines: _Lines) -> bool:
    """Whether ``tensor`` has the differing lines at their places; of rows, one is read first."""
    if not isinstance(tensor, DataTensor) or as_matrix(tensor.shape) != lines.shape:
        return False
    if lines.axis == 0:
        row, width = int(lines.places[0]), lines.shape[1]
        part = tensor.part(((row * width, (row + 1) * width),), (width,))
        if bytes.fromhex(part.digest(lines.fmt) or "")[:16] != lines.digests[row]:
            return False
    digests = line_digests(tensor, lines.fmt, lines.axis)
    return all(digests[place] == lines.digests[place] for place in lines.places)


def spans(places: NDArray[np.intp]) -> str:
    """Places as ranges, three at most: ``0:32, 64:96``."""
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts = places[np.r_[0, breaks + 1]]
    stops = places[np.r_[breaks, len(places) - 1]] + 1
    spans = [f"{a}:{b}" for a, b in zip(starts[:3], stops[:3], strict=True)]
    return ", ".join(spans) + (f" and {len(starts) - 3} more" if len(starts) > 3 else "")
