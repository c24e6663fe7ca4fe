"""Layers under a LoRA adapter that one side has merged."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from precision_lib.weights import names
from precision_lib.weights.adapters import Adapter, adapter, fitted_scale, is_merged
from precision_lib.weights.codes import Values, is_float
from precision_lib.weights.context import Context
from precision_lib.weights.explain import explained
from precision_lib.weights.findings import Finding, Outcome
from precision_lib.weights.layout import Piece, Side
from precision_lib.weights.relation import relation
from precision_lib.weights.tensors import elements, values_of


@dataclass(frozen=True)
class Merge:
    """One layer. Attributes:
    a, b: the matrices. rows: those of B that belong to this projection, None for all.
    at_trainer: which side has the adapter.
    scale: what the adapter's configuration says, None without one.
    """

    a: Piece
    b: Piece
    rows: tuple[int, int] | None
    at_trainer: bool
    scale: float | None


def merged_layers(left: Side, right: Side, context: Context) -> dict[str, Merge]:
    """Shared name of each weight that one side has with an adapter and the other one without."""
    merges = {}
    for side, at_trainer in ((left, True), (right, False)):
        for layer, matrices in side.adapters.items():
            if matrices.keys() != {"A", "B"}:
                continue
            scale = context.contract.lora_scale
            if scale is None:
                scale = _stated(side, layer, matrices["A"].tensor.shape[0])
            for shared, rows in _targets(layer, context).items():
                merges[shared] = Merge(matrices["A"], matrices["B"], rows, at_trainer, scale)
    return merges


def _targets(layer: str, context: Context) -> dict[str, tuple[int, int] | None]:
    """The pieces that an adapter of ``layer`` changes: one, or the parts of a fused layer."""
    fused = names.fused_rule(layer)
    if layer in context.trainer or fused is None:
        return {layer: None} if layer in context.trainer else {}
    targets: dict[str, tuple[int, int] | None] = {}
    start = 0
    for part in fused[1]:
        if part in context.trainer:
            stop = start + context.trainer[part].tensor.shape[0]
            targets[part] = (start, stop)
            start = stop
    return targets


def _stated(side: Side, layer: str, rank: int) -> float | None:
    """alpha / r as adapter_config.json says, alpha / sqrt(r) for rsLoRA; None without one."""
    config = side.source.adapter
    name = layer.removesuffix(".weight")
    alpha = _pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha"))
    if alpha is None:
        return None
    return float(alpha) / (sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(table: Mapping[str, float], name: str, default: float | None) -> float | None:
    for ending, value in table.items():
        if name == ending or name.endswith(f".{ending}"):
            return value
    return default


def compare_merged(merges: Mapping[str, Merge], context: Context, outcome: Outcome) -> None:
    """Judge each layer: merged as stated, or what else it is."""
    loaded: dict[str, tuple[Values, Values, Adapter]] = {}
    for shared, merge in merges.items():
        values = _loaded(shared, merge, context)
        if values is not None:
            loaded[shared] = values
    scale = _common_scale(merges, loaded, outcome)
    for shared, merge in merges.items():
        stated = scale if merge.scale is None else merge.scale
        if shared not in loaded:
            _by_hash(shared, merge, context, outcome)
        elif stated is not None and _follows(shared, loaded[shared], stated, merge, context):
            context.equal.add(shared)
            outcome.count(f"after a LoRA merge, scale {stated:.6g}")
    for shared, merge in merges.items():
        if shared in loaded and shared not in context.equal:
            stated = scale if merge.scale is None else merge.scale
            _explain(shared, merge, loaded, stated, merges, context, outcome)


def _formats(shared: str, merge: Merge, context: Context) -> tuple[str, str]:
    pair = context.trainer[shared].tensor.fmt, context.engine[shared].tensor.fmt
    return pair if merge.at_trainer else pair[::-1]


def _follows(
    shared: str,
    loaded: tuple[Values, Values, Adapter],
    scale: float,
    merge: Merge,
    context: Context,
) -> bool:
    return is_merged(loaded[0], loaded[1], _formats(shared, merge, context), loaded[2], scale)


def _loaded(shared: str, merge: Merge, context: Context) -> tuple[Values, Values, Adapter] | None:
    """Weight below the adapter, weight of the other side, adapter; None without data."""
    pair = context.trainer[shared], context.engine[shared]
    below, other = pair if merge.at_trainer else pair[::-1]
    if below.scale or other.scale or below.tensor.shape != other.tensor.shape:
        return None
    if not (is_float(below.tensor.fmt) and is_float(other.tensor.fmt)):
        return None
    opened = [values_of(p.tensor) for p in (below, other, merge.a, merge.b)]
    weight, engine, a, b = opened
    if weight is None or engine is None or a is None or b is None:
        return None
    b = b if merge.rows is None else b[slice(*merge.rows)]
    lora = adapter(a, b, weight.shape)
    return None if lora is None else (weight, engine, lora)


def _common_scale(
    merges: Mapping[str, Merge],
    loaded: Mapping[str, tuple[Values, Values, Adapter]],
    outcome: Outcome,
) -> float | None:
    """The scale that most layers fit, where no configuration states one; a note says so."""
    unstated = [s for s in loaded if merges[s].scale is None]
    fitted = sorted(fitted_scale(*loaded[shared]) for shared in unstated)
    if not fitted:
        return None
    scale = float(f"{fitted[len(fitted) // 2]:.4g}")
    outcome.notes.append(
        f"no adapter_config.json states the LoRA scale; {scale:g} is what most layers hold "
        "(--lora-scale states it)"
    )
    return scale


def _by_hash(shared: str, merge: Merge, context: Context, outcome: Outcome) -> None:
    """What hashes say: the weight below the adapter went unchanged, or nothing."""
    wanted, given = context.trainer[shared], context.engine[shared]
    related = relation(wanted.tensor, given.tensor)
    statistics = merge.b.tensor.statistics()
    empty = statistics is not None and statistics.zeros == elements(merge.b.tensor)
    if related.equal and empty:
        context.equal.add(shared)
        outcome.count("after a LoRA merge of zeros")
    elif related.equal:
        context.equal.add(shared)
        _base_only(shared, merge, context, outcome)
    else:
        outcome.unread[given.stored] = "whether an adapter was merged needs the values of both"


def _base_only(shared: str, merge: Merge, context: Context, outcome: Outcome) -> None:
    kind = "undelivered" if merge.at_trainer else "extra"
    engine = context.engine[shared].stored
    side = "merged into" if merge.at_trainer else "with"
    for matrix in (merge.a, merge.b):
        words = (
            f"not {side} {engine}: it is the base weight"
            if merge.at_trainer
            else ("the engine applies it, the trainer has the base weight")
        )
        if all(f.tensor != matrix.name for f in outcome.findings):
            stored = {"trainer" if merge.at_trainer else "engine": matrix.stored}
            outcome.findings.append(Finding(kind, matrix.name, words, True, **stored))


def _explain(
    shared: str,
    merge: Merge,
    loaded: Mapping[str, tuple[Values, Values, Adapter]],
    stated: float | None,
    merges: Mapping[str, Merge],
    context: Context,
    outcome: Outcome,
) -> None:
    wanted, given = context.trainer[shared], context.engine[shared]
    if relation(wanted.tensor, given.tensor).equal:
        _base_only(shared, merge, context, outcome)
        return
    weight, engine, lora = loaded[shared]
    factor = fitted_scale(weight, engine, lora)
    rounded = float(f"{factor:.4g}")
    for value in (rounded, factor):
        if _follows(shared, loaded[shared], value, merge, context):
            times = "" if not stated else f", {value / stated:.3g} times the stated {stated:.6g}"
            detail = f"the adapter is merged with scale {value:.6g}{times}"
            outcome.findings.append(_of("scaled", detail, wanted, given))
            return
    for other, entry in loaded.items():
        if other == shared or entry[2].delta.shape != lora.delta.shape or stated is None:
            continue
        if _follows(shared, (weight, engine, entry[2]), stated, merge, context):
            detail = f"the adapter of {context.trainer[other].name} is merged here"
            outcome.findings.append(_of("swapped", detail, wanted, given))
            return
    outcome.findings.append(explained(shared, wanted, given, context))


def _of(kind: str, detail: str, wanted: Piece, given: Piece) -> Finding:
    return Finding(kind, wanted.name, detail, True, wanted.stored, given.stored)
