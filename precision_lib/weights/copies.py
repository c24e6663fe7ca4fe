"""Quantised pairs: codes and scales against those that the recipe makes of the trainer's tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_lib.weights.codes import QUANTISED, Codes, Values, cast, decode, is_float
from precision_lib.weights.context import Context
from precision_lib.weights.explain import explained
from precision_lib.weights.findings import Finding, Outcome
from precision_lib.weights.layout import Piece
from precision_lib.weights.quantisation import (
    SLACK,
    Copy,
    codes_follow,
    follows,
    open_copy,
    quantise_scales,
    wrong_with,
)
from precision_lib.weights.relation import relation
from precision_lib.weights.tensors import DataTensor, Tensor, values_of


@dataclass(frozen=True)
class _Made:
    """Of which trainer values a copy is the recipe's: "master", "bf16", both or none."""

    copy: Copy
    ways: frozenset[str]


def compare_copies(
    pairs: Mapping[str, tuple[Piece, Piece]],
    config: Mapping[str, Any],
    context: Context,
    outcome: Outcome,
) -> None:
    """Judge every pair of which one side is quantised."""
    made: dict[str, _Made] = {}
    for shared, (wanted, given) in pairs.items():
        if wanted.scale is not None and is_float(given.tensor.fmt):
            _decoded(shared, wanted, given, context, outcome)
        elif wanted.scale is not None or wanted.tensor.fmt in QUANTISED:
            _both_quantised(shared, wanted, given, context, outcome)
        elif given.scale is None:
            detail = f"{given.tensor.fmt} codes without a scale"
            outcome.findings.append(wanted.finding("missing", detail, given))
        else:
            copy = _opened(wanted, given, config, outcome)
            if copy is not None:
                made[shared] = _Made(copy, _ways(wanted.tensor, copy))
    made |= _with_one_scale(made, pairs)
    wanted_way = _agreed(made, context.contract.quantised_from)
    for shared, entry in made.items():
        if wanted_way in entry.ways:
            context.equal.add(shared)
            source = "" if len(entry.ways) > 1 else f" of the {wanted_way} values"
            outcome.count(f"quantised to {entry.copy.fmt} by the recipe{source}")
    for shared, entry in made.items():
        if shared not in context.equal:
            outcome.findings.append(_wrong(shared, entry, wanted_way, pairs[shared], context))


def _with_one_scale(
    made: Mapping[str, _Made], pairs: Mapping[str, tuple[Piece, Piece]]
) -> dict[str, _Made]:
    """Parts of a fused tensor with one scale: it is the largest that the recipe gives a part."""
    groups: dict[tuple[str, object], list[str]] = {}
    for shared in made:
        given = pairs[shared][1]
        if given.shares_scale and isinstance(given.scale, DataTensor):
            groups.setdefault((given.scale.name, given.scale.ranges), []).append(shared)
    changed: dict[str, _Made] = {}
    for members in groups.values():
        ways = {"master", "bf16"}
        scales: dict[str, list[float]] = {way: [] for way in ways}
        for shared in members:
            copy = made[shared].copy
            for way, values in _sources(pairs[shared][0].tensor, copy).items():
                scales[way].append(float(quantise_scales(values, copy).flat[0]))
                if not codes_follow(values, copy):
                    ways.discard(way)
        stored = float(made[members[0]].copy.scales.flat[0])
        ways = {way for way in ways if abs(stored - max(scales[way])) <= 2 * SLACK * stored}
        if ways:
            changed |= {shared: _Made(made[shared].copy, frozenset(ways)) for shared in members}
    return changed


def _decoded(shared: str, wanted: Piece, given: Piece, context: Context, outcome: Outcome) -> None:
    """The trainer is quantised, the engine holds the decoded values: code times scale."""
    assert wanted.scale is not None
    opened = None
    if isinstance(given.tensor, DataTensor) and isinstance(wanted.tensor, DataTensor):
        opened = open_copy(wanted.tensor, wanted.scale, {})
    if not isinstance(opened, Copy):
        outcome.unread[given.stored] = opened or "decoded values are checked on values, not hashes"
        return
    codes = given.tensor.codes()
    assert codes is not None
    matrix = codes.reshape(opened.codes.shape)
    power = next((p for p in (1, 0, 2) if _is_decoded(opened, p, matrix, given.tensor.fmt)), None)
    if power is None:
        distance = _relative_distance(opened.decoded(), given.tensor)
        detail = f"not code times scale; relative distance {distance:.2g}"
        outcome.findings.append(wanted.finding("different", detail, given))
    elif power == 1:
        context.equal.add(shared)
        outcome.count(f"decoded to {given.tensor.fmt}")
    else:
        times = {0: "not applied", 2: "applied twice"}[power]
        outcome.findings.append(wanted.finding("scaled", f"the scale is {times}", given))


def _is_decoded(copy: Copy, power: int, codes: Codes, fmt: str) -> bool:
    """Whether ``codes`` are code times scale**power, rounded once to ``fmt``."""
    scaled = Copy(copy.codes, copy.fmt, copy.scales**power, copy.blocks)
    return np.array_equal(cast(scaled.decoded(), fmt), codes)


def _relative_distance(wanted: Values, given: Tensor) -> float:
    values = values_of(given)
    assert values is not None
    difference = values.reshape(wanted.shape) - wanted
    return float(np.linalg.norm(difference) / (np.linalg.norm(wanted) or 1))


def _opened(
    wanted: Piece, given: Piece, config: Mapping[str, Any], outcome: Outcome
) -> Copy | None:
    if given.tensor.shape != wanted.tensor.shape:
        turned = given.tensor.shape == wanted.tensor.shape[::-1]
        detail = f"{list(given.tensor.shape)} instead of {list(wanted.tensor.shape)}"
        kind = "transposed" if turned else "different"
        outcome.findings.append(wanted.finding(kind, detail, given))
        return None
    assert given.scale is not None
    if given.tensor.codes() is None or wanted.tensor.codes() is None:
        counts = [t.statistics() for t in (given.tensor, given.scale)]
        bad = [count.nonfinite for count in counts if count is not None]
        if any(bad):
            detail = f"{bad[0]} codes and {bad[-1]} scales are not finite"
            outcome.findings.append(wanted.finding("non-finite", detail, given))
            return None
        outcome.unread[given.stored] = "a recipe is checked on values; a manifest has hashes alone"
        return None
    copy = open_copy(given.tensor, given.scale, config)
    if isinstance(copy, str):
        kind = "transposed" if copy.endswith("transposed") else "quantised wrongly"
        outcome.findings.append(wanted.finding(kind, copy, given))
        return None
    return copy


def _ways(trainer: Tensor, copy: Copy) -> frozenset[str]:
    ways = {name for name, values in _sources(trainer, copy).items() if follows(values, copy)}
    return frozenset(ways)


def _sources(trainer: Tensor, copy: Copy) -> dict[str, Values]:
    """What the contract may quantise: the trainer's values, or their bf16 export."""
    values = values_of(trainer)
    assert values is not None
    values = values.reshape(copy.codes.shape)
    return {"master": values, "bf16": decode(cast(values, "bf16"), "bf16")}


def _agreed(made: Mapping[str, _Made], contract: str) -> str:
    """The values that all copies should be made of: as the contract says, else what most are."""
    if contract != "either":
        return contract
    counts = {way: sum(way in entry.ways for entry in made.values()) for way in ("master", "bf16")}
    return max(counts, key=counts.__getitem__)


def _wrong(
    shared: str, entry: _Made, wanted_way: str, pair: tuple[Piece, Piece], context: Context
) -> Finding:
    wanted, given = pair
    copy = entry.copy
    if entry.ways:
        other = next(iter(entry.ways))
        detail = f"made of the {other} values; the contract quantises the {wanted_way} values"
        return wanted.finding("quantised wrongly", detail, given)
    values = _sources(wanted.tensor, copy)[wanted_way]
    finite = np.isfinite(copy.scales).all() and np.isfinite(decode(copy.codes, copy.fmt)).all()
    if finite:
        for side in context.older:
            for piece in side.pieces.get(shared, []):
                if piece.tensor.codes() is not None and _ways(piece.tensor, copy):
                    detail = f"quantised from {side.source.label}"
                    return wanted.finding("stale", detail, given)
        source = _source_elsewhere(shared, copy, context)
        if source is not None:
            return wanted.finding(*context.taken(shared, source), given)
    kind, detail = wrong_with(values, copy)
    if kind == "quantised wrongly" and finite:
        return wanted.finding(*_far_or_wrong(values, copy, detail), given)
    return wanted.finding(kind, detail, given)


def _far_or_wrong(values: Values, copy: Copy, detail: str) -> tuple[str, str]:
    """A copy that decodes to unrelated values is another tensor's or an older one's."""
    distance = float(np.linalg.norm(copy.decoded() - values) / (np.linalg.norm(values) or 1))
    return "quantised wrongly", f"{detail}; decoded, the relative distance is {distance:.2g}"


def _source_elsewhere(shared: str, copy: Copy, context: Context) -> str | None:
    """The shared name of another trainer tensor of which the copy is the recipe's."""
    row = copy.decoded()[0]
    for other in context.same_shape(shared):
        tensor = context.trainer[other].tensor
        width = copy.codes.shape[1]
        part = tensor.part(((0, width),), (width,))
        first = None if part is None else values_of(part)
        if first is None or np.linalg.norm(first - row) > 0.2 * np.linalg.norm(row):
            continue
        if _ways(tensor, copy):
            return other
    return None


def _both_quantised(
    shared: str, wanted: Piece, given: Piece, context: Context, outcome: Outcome
) -> None:
    """Codes and scales of both sides, each by hash."""
    if wanted.scale is None or given.scale is None:
        side = "trainer" if wanted.scale is None else "engine"
        if wanted.scale is given.scale:
            if relation(wanted.tensor, given.tensor).equal:
                context.equal.add(shared)
                outcome.count("bitwise")
            else:
                _add(explained(shared, wanted, given, context), outcome)
            return
        detail = f"no scale at the {side}: {wanted.tensor.fmt} against {given.tensor.fmt}"
        outcome.findings.append(wanted.finding("missing", detail, given))
        return
    codes = relation(wanted.tensor, given.tensor)
    scales = relation(wanted.scale, given.scale)
    if codes.equal and scales.equal:
        context.equal.add(shared)
        outcome.count("bitwise")
    elif codes.equal:
        part = Piece(shared, wanted.name, wanted.stored, wanted.scale)
        other = Piece(shared, given.name, given.stored, given.scale)
        reason = explained(shared, part, other, context)
        if reason is not None:
            outcome.findings.append(
                wanted.finding(reason.kind, f"its scale: {reason.detail}", given)
            )
    else:
        _add(explained(shared, wanted, given, context), outcome)


def _add(finding: Finding | None, outcome: Outcome) -> None:
    if finding is not None:
        outcome.findings.append(finding)
