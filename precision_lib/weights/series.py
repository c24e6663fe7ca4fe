"""Controls over training steps: what moved between two manifests or checkpoints of one side.

Two controls acquit or convict a step without any log-prob. At learning rate 0 nothing may move. At
any other rate, everything that is trained must move, in FP32 masters. The share of 16-bit codes
that changed is what an engine in 16 bits sees of an update; it needs the values of both steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from precision_lib.weights import names
from precision_lib.weights.codes import CODE_TYPES, cast, is_float
from precision_lib.weights.files import Source
from precision_lib.weights.findings import Finding, Outcome
from precision_lib.weights.layout import sides
from precision_lib.weights.relation import relation
from precision_lib.weights.tensors import DataTensor, Tensor, elements


@dataclass(frozen=True)
class Movement:
    """One tensor between two steps.

    Attributes:
        tensor: its name. moved: whether any code changed; None where the manifest cannot say.
        share: of its values, how many have another 16-bit code (bf16 for FP32 tensors); None
            without the values.
    """

    tensor: str
    moved: bool | None
    share: float | None


def movements(before: Source, after: Source) -> list[Movement]:
    """What moved from ``before`` to ``after``, for every floating-point tensor of both."""
    left, right = sides(before, after)
    moves = []
    for shared in sorted(left.pieces.keys() & right.pieces.keys()):
        old, new = left.pieces[shared][0], right.pieces[shared][0]
        if not is_float(new.tensor.fmt) or names.may_be_alone(shared, "trainer"):
            continue
        related = relation(old.tensor, new.tensor)
        moved = None if related.way == "unknown" else not related.equal
        share = changed_share(old.tensor, new.tensor) if moved else 0.0
        moves.append(Movement(new.name, moved, share))
    return moves


def changed_share(old: Tensor, new: Tensor) -> float | None:
    """Share of elements whose 16-bit code differs, piece by piece; None without the values."""
    if not (isinstance(old, DataTensor) and isinstance(new, DataTensor)) or old.shape != new.shape:
        return None
    fmt = new.fmt if CODE_TYPES[new.fmt] in ("<u2", "<f2") else "bf16"
    changed = sum(
        int(np.count_nonzero(_codes(a, fmt) != _codes(b, fmt)))
        for a, b in zip(old.values(), new.values(), strict=True)
    )
    return changed / max(elements(new), 1)


def _codes(values: np.ndarray, fmt: str) -> np.ndarray:
    return cast(values, fmt).view(np.uint16)


def check_series(series: Sequence[Source], learning_rate: float) -> list[Finding]:
    """Findings of all steps of a series, the earliest first.

    Raises:
        ValueError: fewer than two sources.
    """
    if len(series) < 2:
        raise ValueError(f"{len(series)} manifests are no series; give two or more")
    return [
        f
        for old, new in pairwise(series)
        for f in _against_rate(movements(old, new), learning_rate)
    ]


def add_movement(
    outcome: Outcome, before: Source, after: Source, learning_rate: float | None
) -> None:
    """Add the movement since ``before`` to ``outcome``, and findings where the rate is known."""
    moves = movements(before, after)
    outcome.moved = {move.tensor: move.share for move in moves if move.share is not None}
    if learning_rate is not None:
        outcome.findings += _against_rate(moves, learning_rate)


def _against_rate(moves: list[Movement], learning_rate: float) -> list[Finding]:
    if learning_rate == 0:
        wrong = [move.tensor for move in moves if move.moved]
        return [Finding("moved", name, "it moved at learning rate 0") for name in wrong]
    still = [move.tensor for move in moves if move.moved is False]
    detail = f"it did not change at learning rate {learning_rate:g}"
    return [Finding("unmoved", name, detail) for name in still]
