"""Why a tensor differs: the first reason that is exact, else what statistics suggest.

The hazard. "It differs" costs a day; a wrong reason costs two months. So a reason is a hash that
is equal, or a relation that all elements fulfil; "near" and "far" are marked as not exact.
"""

import functools
from collections.abc import Callable

import numpy as np

from precision_lib.weights.codes import TRUNCATED, cast, decode, is_float
from precision_lib.weights.context import Context
from precision_lib.weights.findings import Finding
from precision_lib.weights.layout import Piece
from precision_lib.weights.partial import lines_explained, spans
from precision_lib.weights.relation import relation, squeezed
from precision_lib.weights.scaled import factor_of
from precision_lib.weights.survey import survey
from precision_lib.weights.tensors import FIRST, DataTensor, Tensor, elements, values_of, wider

Reason = tuple[str, str, bool]  # kind, detail, exact
#: Relative distance below which values are an earlier step's rather than unrelated ones: the
#: distance of two independent tensors of one norm is 1.41, that of one step far below 0.1.
NEAR = 0.5
#: Fewer values are near each other by chance.
FEWEST = 4


def explained(shared: str, trainer: Piece, engine: Piece, context: Context) -> Finding | None:
    """The finding for a piece that is not equal; None where only signs of zeros differ."""
    kind, detail, exact = _reason(shared, trainer.tensor, engine.tensor, context)
    if kind == "equal":
        return None
    return Finding(kind, trainer.name, detail, exact, trainer.stored, engine.stored)


def _reason(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason:
    checks: tuple[Callable[[str, Tensor, Tensor, Context], Reason | None], ...] = (
        _other_shape,
        _counts,
        _stale,
        _elsewhere,
        _transposed,
        _truncated,
        _never_loaded,
        _not_finite_at_the_trainer,
        _by_data,
    )
    for check in checks:
        reason = check(shared, trainer, engine, context)
        if reason is not None:
            return reason
    return _by_statistics(trainer, engine)


def _other_shape(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    if squeezed(trainer.shape) == squeezed(engine.shape):
        return None
    if trainer.shape == engine.shape[::-1]:
        reason = _transposed(shared, trainer, engine, context)
        if reason is not None:
            return reason
    shapes = f"{_shape(engine)} at the engine, {_shape(trainer)} at the trainer"
    rows = _held_rows(trainer, engine)
    if rows is not None:
        return "missing", f"holds rows {rows[0]}:{rows[1]} only: {shapes}", True
    return "different", f"another shape: {shapes}", True


def _held_rows(trainer: Tensor, engine: Tensor) -> tuple[int, int] | None:
    """Rows of the trainer that the engine holds, where it holds one of equal shards."""
    if len(engine.shape) != len(trainer.shape) or engine.shape[1:] != trainer.shape[1:]:
        return None
    count = engine.shape[0]
    width = elements(trainer) // max(trainer.shape[0], 1)
    for first in range(0, trainer.shape[0] - count + 1, max(count, 1)):
        ranges = ((first * width, (first + count) * width),)
        part = trainer.part(ranges, engine.shape)
        if part is not None and relation(part, engine).equal:
            return first, first + count
    return None


def _counts(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    own, other = engine.statistics(), trainer.statistics()
    if own is None or other is None:
        return None
    if own.nonfinite > other.nonfinite:
        return "non-finite", f"{own.nonfinite} of {elements(engine)} values{_where(engine)}", True
    if own.zeros == elements(engine) and other.zeros < own.zeros:
        return "zero", f"all {own.zeros} values are 0", True
    return None


def _where(engine: Tensor) -> str:
    """The rows that hold values that are not finite."""
    values = values_of(engine)
    if values is None or values.ndim < 2:
        return ""
    rows = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    return f", rows {rows[0]} to {rows[-1]}" if len(rows) else ""


def _stale(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    for side in context.older:
        for piece in side.pieces.get(shared, []):
            if relation(piece.tensor, engine).way in ("bitwise", "cast", "upcast", "rounded"):
                step = "" if side.source.step is None else f", step {side.source.step}"
                return "stale", f"equal to {side.source.label}{step}", True
    return None


def _elsewhere(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    digest = engine.digest(engine.fmt)
    sources = [x for x in context.names_of(digest, engine.fmt, engine.shape) if x != shared]
    misplaced = [x for x in sources if x not in context.equal]
    if not sources:
        return None
    statistics = engine.statistics()
    if len(sources) > 1 and statistics is not None and len(set(statistics.sketch)) == 1:
        value = statistics.sketch[0]
        return "different", f"all values seem to be {value:g}, as in {len(sources)} others", False
    return (*context.taken(shared, (misplaced or sources)[0]), True)


def _transposed(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    if len(trainer.shape) != 2 or engine.shape != trainer.shape[::-1]:
        return None
    wanted = trainer.transposed_digest(engine.fmt)
    if wanted is not None and wanted == engine.digest(engine.fmt):
        return "transposed", f"{_shape(engine)} holds the transposed matrix", True
    if engine.shape == trainer.shape:
        return None
    narrow = wider(engine.fmt, trainer.fmt)
    if narrow and engine.transposed_digest(trainer.fmt) == trainer.digest(trainer.fmt):
        return "transposed", f"{_shape(engine)} holds the transposed matrix", True
    return None


def _truncated(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    digest = trainer.digest(TRUNCATED) if engine.fmt == "bf16" else None
    if digest is None or digest != engine.digest("bf16"):
        return None
    return "cast", "truncated to bf16 instead of rounded", True


def _never_loaded(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    """One value throughout, where the trainer has several."""
    own, other = engine.statistics(), trainer.statistics()
    if own is None or other is None or not own.constant or other.constant:
        return None
    exact = isinstance(engine, DataTensor)
    value = own.sketch[0]
    if isinstance(engine, DataTensor) and not all((v == value).all() for v in engine.values()):
        return None
    return "different", f"all values are {value:g}, as before loading", exact


def _not_finite_at_the_trainer(
    shared: str, trainer: Tensor, engine: Tensor, context: Context
) -> Reason | None:
    own, other = engine.statistics(), trainer.statistics()
    if own is None or other is None or own.nonfinite >= other.nonfinite:
        return None
    words = f"{other.nonfinite} values are not finite at the trainer, {own.nonfinite} at the engine"
    return "different", words, True


def _by_data(shared: str, trainer: Tensor, engine: Tensor, context: Context) -> Reason | None:
    """What only the elements themselves can say."""
    if not (isinstance(trainer, DataTensor) and isinstance(engine, DataTensor)):
        return None
    if not (is_float(engine.fmt) and is_float(trainer.fmt)):
        return None
    for words, faulty in _faulty_casts(trainer.fmt, engine.fmt):
        if _is_cast_by(faulty, trainer, engine):
            return "cast", words, True
    seen = survey(trainer, engine)
    if not seen.changed:
        return "equal", "only signs of zeros or bits of NaN differ", True
    reason = lines_explained(shared, trainer, engine, seen, context)
    if reason is not None:
        return reason
    factors = factor_of(trainer, engine)
    if factors is not None:
        return "scaled", factors, True
    for offset in (1, -1) if len(squeezed(engine.shape)) == 1 else ():
        moved = functools.partial(_moved, by=offset, fmt=engine.fmt)
        if _is_cast_by(moved, trainer, engine):
            return "different", f"every value is the trainer's plus {offset}", True
    share = seen.changed / max(seen.size, 1)
    words = f"relative distance {seen.distance:.2g}, {share:.1%} of the values differ"
    if seen.distance >= NEAR and not seen.rows.all():
        rows = f"{words}, in rows {spans(np.flatnonzero(seen.rows))}"
        return "different", f"{rows}; the others are equal", True
    return _near(seen.distance, seen.size, words)


def _is_cast_by(
    faulty: Callable[[np.ndarray], np.ndarray], trainer: DataTensor, engine: DataTensor
) -> bool:
    """Whether the engine's codes are those of ``faulty``; it stops at the first that is not."""
    first = min(elements(engine), FIRST)
    if first < elements(engine):
        some = (tensor.part(((0, first),), (first,)) for tensor in (trainer, engine))
        if not _is_cast_by(faulty, *some):
            return False
    pieces = zip(trainer.pieces(), engine.pieces(), strict=True)
    return all(
        np.array_equal(faulty(decode(wanted, trainer.fmt)), given) for wanted, given in pieces
    )


def _faulty_casts(own: str, fmt: str) -> list[tuple[str, Callable[..., np.ndarray]]]:
    """Ways to a wrong cast from ``own`` to ``fmt``, with their words."""
    ways = [("rounded to fp8_e4m3 without a scale on the way", "fp8_e4m3")]
    if wider(own, fmt):
        middle = "fp16" if fmt == "bf16" else "bf16"
        ways.append((f"rounded twice, through {middle}", middle))
    return [(words, functools.partial(_twice, first=first, fmt=fmt)) for words, first in ways]


def _moved(values: np.ndarray, by: int, fmt: str) -> np.ndarray:
    return cast(values + by, fmt)


def _twice(values: np.ndarray, first: str, fmt: str) -> np.ndarray:
    return cast(decode(cast(values, first), first), fmt)


def _near(distance: float, size: int, words: str) -> Reason:
    if distance < NEAR and size >= FEWEST:
        return "stale", f"{words}: near, as an earlier step; --older FILE would prove it", False
    return "different", f"{words}: unrelated", False


def _by_statistics(trainer: Tensor, engine: Tensor) -> Reason:
    """From what a manifest holds: norms and a few values."""
    if not is_float(engine.fmt):
        return "different", "other integers", True
    own, other = engine.statistics(), trainer.statistics()
    if own is None or other is None or len(own.sketch) != len(other.sketch):
        return "different", "the hashes differ", False
    given, wanted = np.array(own.sketch), np.array(other.sketch)
    norm = float(np.linalg.norm(wanted))
    distance = float(np.linalg.norm(given - wanted)) / norm if norm else float("inf")
    words = f"norm {own.norm:g}, trainer {other.norm:g}; of {len(given)} sampled values: "
    nonzero = wanted != 0
    ratios = given[nonzero] / wanted[nonzero]
    if len(ratios) > 3:
        mean, spread = float(ratios.mean()), float(np.ptp(ratios))
        if spread < min(abs(mean - 1), 0.02 * abs(mean)):
            return "scaled", f"{words}ratio {mean:.4g} throughout", False
    return _near(distance, elements(engine), f"{words}relative distance {distance:.2g}")


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(n) for n in tensor.shape) + "]"
