"""Controls over training steps: what moved between two manifests or checkpoints of one side.

Two controls judge a step without any log-prob. At learning rate 0 nothing may move. At
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
from precision_lib.weights.findings import Finding, Moved, Outcome
from precision_lib.weights.layout import sides
from precision_lib.weights.recorded import ManifestTensor
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
    """Share of elements whose 16-bit code differs; None where neither values nor manifest say."""
    fmt = new.fmt if CODE_TYPES[new.fmt] in ("<u2", "<f2") else "bf16"
    if isinstance(new, ManifestTensor):
        return new.changed_since(old, fmt)
    if not (isinstance(old, DataTensor) and isinstance(new, DataTensor)) or old.shape != new.shape:
        return None
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
    return _against_rate([movements(old, new) for old, new in pairwise(series)], learning_rate)


def add_movement(outcome: Outcome, series: Sequence[Source], learning_rate: float | None) -> None:
    """Add the movement of a series, the earliest first, and findings where the rate is known."""
    for old, new in pairwise(series):
        shares = {m.tensor: m.share for m in movements(old, new) if m.share is not None}
        outcome.moved.append(Moved(_named(old), _named(new), shares))
    if learning_rate is not None:
        outcome.findings += check_series(series, learning_rate)


def latest_first(older: Sequence[Source], trainer: Source) -> list[Source]:
    """Earlier weights by falling step where all steps are known; else in the order given."""
    steps = [source.step for source in (*older, trainer) if source.step is not None]
    if len(steps) <= len(older):
        return list(older)
    before = [source for source in older if (source.step or 0) < (trainer.step or 0)]
    return sorted(before, key=lambda source: source.step or 0, reverse=True)


def _named(source: Source) -> str:
    return source.label if source.step is None else f"step {source.step}"


def _against_rate(steps: list[list[Movement]], learning_rate: float) -> list[Finding]:
    """One finding for each tensor, with the number of steps that break the rule."""
    still = learning_rate != 0
    counts: dict[str, int] = {}
    for moves in steps:
        for move in moves:
            if move.moved is not None and move.moved != still:
                counts[move.tensor] = counts.get(move.tensor, 0) + 1
    kind, words = ("unmoved", "did not change") if still else ("moved", "moved")
    findings = []
    for name, count in counts.items():
        times = f", in {count} of {len(steps)} steps" if len(steps) > 1 else ""
        findings.append(
            Finding(kind, name, f"it {words} at learning rate {learning_rate:g}{times}")
        )
    return findings
