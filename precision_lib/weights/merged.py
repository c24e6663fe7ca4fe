"""Layers under a LoRA adapter that one side has merged."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from precision_lib.weights import names
from precision_lib.weights.adapters import Adapter, adapter, fitted_scale, is_merged
from precision_lib.weights.codes import is_float
from precision_lib.weights.context import Context
from precision_lib.weights.explain import explained
from precision_lib.weights.findings import Finding, Outcome
from precision_lib.weights.layout import Piece, Side
from precision_lib.weights.relation import relation
from precision_lib.weights.tensors import DataTensor, elements, values_of


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


def merged_layers(left: Side, right: Side, context: Context, outcome: Outcome) -> dict[str, Merge]:
    """Shared name of each weight that one side has with an adapter and the other one without."""
    merges = {}
    for side, at_trainer in ((left, True), (right, False)):
        for layer, matrices in side.adapters.items():
            scale = context.contract.lora_scale
            if scale is None:
                scale = _stated(side, layer, matrices["A"].tensor.shape[0])
            targets = _targets(layer, context)
            other = right if at_trainer else left
            if not targets and layer not in other.pieces:
                kind, side_of = ("undelivered", "trainer") if at_trainer else ("extra", "engine")
                for matrix in matrices.values():
                    detail = "the other side has neither the adapter nor the weight below it"
                    stored = {side_of: matrix.stored}
                    outcome.findings.append(Finding(kind, matrix.name, detail, True, **stored))
            elif not targets:
                outcome.unread[matrices["A"].stored] = f"{layer}, the weight below it, is not there"
            for shared, rows in targets.items():
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


Layer = tuple[DataTensor, DataTensor, Adapter]  # below the adapter, the other side, the adapter


def compare_merged(merges: Mapping[str, Merge], context: Context, outcome: Outcome) -> None:
    """Judge each layer: merged as stated, or what else it is."""
    layers: dict[str, Layer] = {}
    for shared, merge in merges.items():
        layer = _layer(shared, merge, context)
        if layer is not None:
            layers[shared] = layer
    common = _common_scale(merges, layers, outcome)
    scales = {s: common if m.scale is None else m.scale for s, m in merges.items()}
    for shared, merge in merges.items():
        stated = scales[shared]
        if shared not in layers:
            _by_hash(shared, merge, context, outcome)
        elif stated is not None and is_merged(*layers[shared], stated):
            context.equal.add(shared)
            outcome.count(f"after a LoRA merge, scale {stated:.6g}")
    for shared in layers:
        if shared not in context.equal:
            _explain(shared, merges[shared], layers, scales[shared], context, outcome)


def _layer(shared: str, merge: Merge, context: Context) -> Layer | None:
    """The tensors of one layer; None without data, or where a side is quantised."""
    pair = context.trainer[shared], context.engine[shared]
    below, other = pair if merge.at_trainer else pair[::-1]
    first, second = below.tensor, other.tensor
    if below.scale or other.scale or first.shape != second.shape:
        return None
    if not (isinstance(first, DataTensor) and isinstance(second, DataTensor)):
        return None
    a, b = values_of(merge.a.tensor), values_of(merge.b.tensor)
    if a is None or b is None or not (is_float(first.fmt) and is_float(second.fmt)):
        return None
    b = b if merge.rows is None else b[slice(*merge.rows)]
    lora = adapter(a, b, first.shape, merge.a.tensor.fmt)
    return None if lora is None else (first, second, lora)


def _common_scale(
    merges: Mapping[str, Merge], layers: Mapping[str, Layer], outcome: Outcome
) -> float | None:
    """The scale that most layers fit, where no configuration states one; a note says so."""
    unstated = [shared for shared in layers if merges[shared].scale is None]
    fitted = sorted(fitted_scale(*layers[shared]) for shared in unstated)
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
    layers: Mapping[str, Layer],
    stated: float | None,
    context: Context,
    outcome: Outcome,
) -> None:
    wanted, given = context.trainer[shared], context.engine[shared]
    if relation(wanted.tensor, given.tensor).equal:
        _base_only(shared, merge, context, outcome)
        return
    weight, engine, lora = layers[shared]
    value = _merged_with(weight, engine, lora)
    if value is not None:
        times = "" if not stated else f", {value / stated:.3g} times the stated {stated:.6g}"
        detail = f"the adapter is merged with scale {value:.6g}{times}"
        outcome.findings.append(wanted.finding("scaled", detail, given))
        return
    for other, (below, _, another) in layers.items():
        if other == shared or below.shape != weight.shape or stated is None:
            continue
        if is_merged(weight, engine, another, stated):
            detail = f"the adapter of {context.trainer[other].name} is merged here"
            outcome.findings.append(wanted.finding("swapped", detail, given))
            return
    finding = explained(shared, wanted, given, context)
    if finding is not None:
        outcome.findings.append(finding)


def _merged_with(weight: DataTensor, engine: DataTensor, lora: Adapter) -> float | None:
    """The scale of the merge, with as few digits as explain it; None where none does."""
    factor = fitted_scale(weight, engine, lora)
    rounded = (*(float(f"{factor:.{digits}g}") for digits in (2, 3, 4)), factor)
    return next((value for value in rounded if is_merged(weight, engine, lora, value)), None)


def merged_beside_adapter(
    shared: str, wanted: Piece, given: Piece, context: Context
) -> Finding | None:
    """The finding for a weight with an adapter on both sides that the engine has merged, too."""
    layer = shared.removesuffix(".weight")
    pair = [context.trainer.get(f"{layer}.lora_{matrix}.weight") for matrix in "AB"]
    if pair[0] is None or pair[1] is None or wanted.scale or given.scale:
        return None
    first, second = wanted.tensor, given.tensor
    if not (isinstance(first, DataTensor) and isinstance(second, DataTensor)):
        return None
    a, b = (values_of(piece.tensor) for piece in pair if piece is not None)
    lora = None if a is None or b is None else adapter(a, b, first.shape, pair[0].tensor.fmt)
    if lora is None or first.shape != second.shape:
        return None
    value = _merged_with(first, second, lora)
    if not value:
        return None
    detail = f"the adapter, which the engine applies, is merged too, with scale {value:.6g}"
    return wanted.finding("scaled", detail, given)
