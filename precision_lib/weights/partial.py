"""Where only rows or columns differ: zeros, rows in another order, a shard of another rank.

Tensor parallelism cuts projections into row shards or column shards. A shard at the wrong rank
shows as rows (columns) that stand elsewhere in the tensor, in a sibling that is fused with it, in
another tensor, or in older weights. Rows are compared code by code.
"""

from collections.abc import Iterator

import numpy as np

from precision_lib.weights.codes import Codes, cast
from precision_lib.weights.context import Context
from precision_lib.weights.relation import squeezed
from precision_lib.weights.tensors import Tensor, values_of

Reason = tuple[str, str, bool]


def rows_explained(
    shared: str, exported: np.ndarray, given: np.ndarray, engine: Tensor, context: Context
) -> Reason | None:
    """A reason that all differing rows, or all differing columns, have in common.

    Args:
        exported, given: flat values of the trainer, cast to the engine's format, and the engine's.
    """
    differs = exported != given
    if differs.any() and not given[differs].any():
        return "zero", f"{np.count_nonzero(differs)} of {given.size} values are 0", True
    shape = squeezed(engine.shape)
    wanted, codes = (cast(x, engine.fmt).reshape(shape) for x in (exported, given))
    if len(shape) == 1:
        same = np.array_equal(np.sort(exported), np.sort(given))
        return ("swapped", "the values stand in another order", True) if same else None
    if len(shape) != 2:
        return None
    for axis, words in ((0, "rows"), (1, "columns")):
        reason = _along(shared, axis, words, (wanted, codes), engine.fmt, context)
        if reason is not None:
            return reason
    return None


def _along(
    shared: str,
    axis: int,
    words: str,
    pair: tuple[Codes, Codes],
    fmt: str,
    context: Context,
) -> Reason | None:
    wanted, codes = pair if axis == 0 else (pair[0].T, pair[1].T)
    places = np.flatnonzero((wanted != codes).any(axis=1))
    rows = [codes[i].tobytes() for i in places]
    known = {row.tobytes(): (shared, i) for i, row in enumerate(wanted)}
    if rows[0] not in known:
        for sibling, other in _siblings(shared, axis, wanted.shape[1], fmt, context):
            for i, row in enumerate(other if axis == 0 else other.T):
                known.setdefault(row.tobytes(), (sibling, i))
    if all(row in known for row in rows) and wanted.shape[1] > 1:
        sources = [known[row] for row in rows]
        return _moved(shared, words, places, sources, (wanted, codes), context)
    if len(places) < len(wanted):
        return _of_others(shared, axis, words, places, codes, fmt, context)
    return None


def _moved(
    shared: str,
    words: str,
    places: np.ndarray,
    sources: list[tuple[str, int]],
    pair: tuple[Codes, Codes],
    context: Context,
) -> Reason:
    wanted, codes = pair
    owners = sorted({owner for owner, _ in sources})
    first = sources[0][1]
    inside = f"{words} {_spans(places)} hold {words} from {first} on of "
    inside += " and ".join(context.trainer[owner].name for owner in owners)
    if owners == [shared]:
        same = sorted(row.tobytes() for row in wanted) == sorted(row.tobytes() for row in codes)
        kind = "swapped" if same else "duplicated"
    else:
        others = [owner for owner in owners if owner != shared]
        kind = "duplicated" if all(o in context.equal for o in others) else "swapped"
    return kind, inside, True


def _siblings(
    shared: str, axis: int, width: int, fmt: str, context: Context
) -> Iterator[tuple[str, Codes]]:
    """The trainer's other projections of one module with rows (columns) of this width."""
    parent = shared.rsplit(".", 2)[0]
    for other, piece in context.trainer.items():
        shape = squeezed(piece.tensor.shape)
        if other == shared or other.rsplit(".", 2)[0] != parent:
            continue
        if len(shape) == 2 and shape[1 - axis] == width:
            codes = _exported(piece.tensor, fmt)
            if codes is not None:
                yield other, codes.reshape(shape)


def _of_others(
    shared: str,
    axis: int,
    words: str,
    places: np.ndarray,
    codes: Codes,
    fmt: str,
    context: Context,
) -> Reason | None:
    """The differing rows stand at the same place of older weights or of another tensor."""
    spans = _spans(places)
    for side in context.older:
        for piece in side.pieces.get(shared, []):
            if _holds(piece.tensor, axis, places, codes, fmt):
                return "stale", f"{words} {spans} are equal to {side.source.label}", True
    for other in context.same_shape(shared):
        if _holds(context.trainer[other].tensor, axis, places, codes, fmt):
            kind = "duplicated" if other in context.equal else "swapped"
            return kind, f"{words} {spans} are those of {context.trainer[other].name}", True
    return None


def _holds(tensor: Tensor, axis: int, places: np.ndarray, codes: Codes, fmt: str) -> bool:
    """Whether ``tensor`` has the rows ``places`` of ``codes`` [R, C]; one row is read first."""
    shape = codes.shape if axis == 0 else codes.shape[::-1]
    if squeezed(tensor.shape) != squeezed(shape):
        return False
    row = int(places[0]) if axis == 0 else 0
    part = tensor.part(((row * shape[1], (row + 1) * shape[1]),), (shape[1],))
    first = None if part is None else _exported(part, fmt)
    if first is None:
        return False
    same = first == codes[row] if axis == 0 else first[places] == codes[places, 0]
    if not same.all():
        return False
    whole = _exported(tensor, fmt)
    if whole is None:
        return False
    whole = whole.reshape(shape)
    return np.array_equal((whole if axis == 0 else whole.T)[places], codes[places])


def _exported(tensor: Tensor, fmt: str) -> Codes | None:
    """Codes of a trainer's tensor in the engine's format, None without data."""
    values = values_of(tensor)
    return None if values is None else cast(values, fmt)


def _spans(places: np.ndarray) -> str:
    """Places as ranges, three at most: ``0:32, 64:96``."""
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts = places[np.r_[0, breaks + 1]]
    stops = places[np.r_[breaks, len(places) - 1]] + 1
    spans = [f"{a}:{b}" for a, b in zip(starts[:3], stops[:3], strict=True)]
    return ", ".join(spans) + (f" and {len(starts) - 3} more" if len(starts) > 3 else "")
