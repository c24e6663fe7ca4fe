"""Two sides against each other: pairs by name, how they are equal, a finding for the rest."""

from collections.abc import Sequence
from dataclasses import replace

from precision_lib.weights import names
from precision_lib.weights.codes import QUANTISED, is_float
from precision_lib.weights.context import Context
from precision_lib.weights.copies import compare_copies
from precision_lib.weights.explain import explained
from precision_lib.weights.files import Source
from precision_lib.weights.findings import KINDS, Contract, Finding, Outcome
from precision_lib.weights.layout import Piece, Side, sides
from precision_lib.weights.merged import compare_merged, merged_beside_adapter, merged_layers
from precision_lib.weights.model_config import vocabulary
from precision_lib.weights.must_stay import must_stay_fp32
from precision_lib.weights.padding import common_rows, rows_lost, without_padding
from precision_lib.weights.pairs import Pairs, paired, tie
from precision_lib.weights.relation import Relation, relation
from precision_lib.weights.tensors import DataTensor, Tensor, elements


def compare(
    trainer: Source,
    engine: Source,
    contract: Contract | None = None,
    older: Sequence[Source] = (),
) -> Outcome:
    """Compare the weights of an engine with those of a trainer.

    Args:
        older: earlier weights of the trainer, the latest first.
    """
    contract = contract or Contract()
    left, right = sides(trainer, engine)
    outcome = Outcome(unread={**left.unread, **right.unread})
    tie(left, right)
    pairs = paired(left, right, outcome)
    shorter = None if pairs else _without_prefix(left, right)
    if shorter is not None and shorter != (trainer, engine):
        outcome = compare(*shorter, contract, older)
        outcome.notes.append("one side's names have a prefix that was left out")
        return outcome
    if not pairs:
        outcome.findings.clear()
        outcome.notes.append(no_common_name(left, right))
        return outcome
    before = [sides(source, engine)[0] for source in older]
    for side in before:
        tie(side, right)
    tokens = vocabulary(trainer.config) or vocabulary(engine.config)
    context = Context(pairs, before, contract, tokens)
    judge(pairs, left, right, context, outcome)
    sort_findings(outcome)
    return outcome


def sort_findings(outcome: Outcome) -> None:
    """Findings in the order of the kinds."""
    order = list(KINDS)
    outcome.findings.sort(key=lambda finding: order.index(finding.kind))


def judge(pairs: Pairs, left: Side, right: Side, context: Context, outcome: Outcome) -> None:
    """Count what is equal, then explain the rest."""
    formats = dominant_formats(pairs)
    merges = merged_layers(left, right, context, outcome)
    plain: dict[str, Relation] = {}
    for shared, (wanted, given) in pairs.items():
        outcome.elements += elements(given.tensor)
        if must_stay_fp32(shared, context.contract.keep_fp32):
            outcome.must_stay[given.name] = (wanted.tensor.fmt, given.tensor.fmt)
        if shared in merges or given.tensor.fmt in QUANTISED or given.scale or wanted.scale:
            continue
        plain[shared] = relation(wanted.tensor, given.tensor)
        if plain[shared].equal:
            context.equal.add(shared)
    compare_merged(merges, context, outcome)
    copies = {s: pairs[s] for s in pairs if s not in plain and s not in merges}
    compare_copies(copies, right.source.config, context, outcome)
    for shared, related in plain.items():
        _say(shared, related, pairs[shared], formats, context, outcome)
    _note_nonfinite([pairs[shared] for shared in plain if shared in context.equal], outcome)
    outcome.findings = _settled(outcome.findings, pairs)


def _note_nonfinite(equal: list[tuple[Piece, Piece]], outcome: Outcome) -> None:
    """Say where both sides are equal and broken."""
    broken = [wanted.name for wanted, given in equal if given.tensor.nonfinite()]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        outcome.notes.append(f"NaN or infinity on both sides: {', '.join(broken[:3])}{more}")


def _settled(findings: list[Finding], pairs: Pairs) -> list[Finding]:
    """Vectors follow the matrices where statistics alone judge: norms near 1 are always near."""
    matrices = {pair[0].stored for pair in pairs.values() if len(pair[0].tensor.shape) > 1}
    kinds = [f.kind for f in findings if not f.exact and f.trainer in matrices]
    if not kinds:
        return findings
    usual = max(sorted(set(kinds)), key=kinds.count)
    return [
        replace(f, kind=usual) if not f.exact and f.trainer not in matrices else f for f in findings
    ]


def _say(
    shared: str,
    related: Relation,
    pair: tuple[Piece, Piece],
    formats: tuple[str, str],
    context: Context,
    outcome: Outcome,
) -> None:
    wanted, given = pair
    refused = _refused_cast(shared, related, pair, formats, context.contract)
    if related.way == "unknown":
        outcome.unread[given.stored] = (
            f"the trainer's manifest has no hash of {wanted.name} as {given.tensor.fmt}"
        )
    elif refused:
        outcome.findings.append(wanted.finding("cast", refused, given))
    elif _only_nan_bits(related, wanted.tensor, given.tensor):
        outcome.unread[given.stored] = (
            f"{given.tensor.nonfinite()} values are not finite on either side, and a cast changes "
            "the bits of NaN: give checkpoints"
        )
    elif related.fmt == "fp16" and _overflows(wanted, given):
        detail = "values beyond 65504 became infinite in fp16"
        outcome.findings.append(wanted.finding("non-finite", detail, given))
    elif related.equal:
        ways = {"bitwise": "bitwise", "upcast": f"widened to {related.fmt}"}
        outcome.count(ways.get(related.way, f"rounded once to {related.fmt}"))
    else:
        padding = without_padding(shared, wanted, given)
        lost = "" if padding is None else rows_lost(wanted, given, context.vocabulary)
        if lost:
            outcome.findings.append(wanted.finding("missing", lost, given))
        elif padding is None:
            finding = merged_beside_adapter(shared, wanted, given, context) or explained(
                shared, *common_rows(shared, wanted, given), context
            )
            if finding is None:
                context.equal.add(shared)
                outcome.count("up to the sign of zeros or the bits of NaN")
            else:
                outcome.findings.append(finding)
        elif padding:
            outcome.findings.append(wanted.finding("extra", padding, given))
        else:
            outcome.count("without padded rows")


def _only_nan_bits(related: Relation, wanted: Tensor, given: Tensor) -> bool:
    """Whether hashes may differ by a cast of NaN alone; values would tell."""
    if related.way != "different" or wanted.fmt == given.fmt or wanted.shape != given.shape:
        return False
    if isinstance(wanted, DataTensor) and isinstance(given, DataTensor):
        return False
    before, after = wanted.statistics(), given.statistics()
    if before is None or after is None or not before.nonfinite == after.nonfinite != 0:
        return False
    return abs(before.norm - after.norm) <= 1e-3 * before.norm


def _overflows(wanted: Piece, given: Piece) -> bool:
    """Whether a correct cast made infinities."""
    before, after = wanted.tensor.statistics(), given.tensor.statistics()
    return before is not None and after is not None and after.nonfinite > before.nonfinite


def _refused_cast(
    shared: str,
    related: Relation,
    pair: tuple[Piece, Piece],
    formats: tuple[str, str],
    contract: Contract,
) -> str:
    """Why the contract does not allow the cast; "" where it does, or where there is none."""
    wanted, given = pair[0].tensor.fmt, pair[1].tensor.fmt
    if related.way == "rounded":
        return f"rounded to {related.fmt} and stored as {given}"
    if related.way == "trainer rounded":
        return f"the trainer's values are the engine's rounded to {related.fmt}"
    if wanted != given and not (is_float(wanted) and is_float(given)):
        return f"{wanted} to {given}, which is no cast between weights"
    if related.way != "cast":
        return ""
    if wanted == "fp32" and must_stay_fp32(shared, contract.keep_fp32):
        return f"{given}; it must stay fp32"
    if given != formats[1]:
        return f"{wanted} to {given}; the engine's other weights are {formats[1]}"
    if wanted != formats[0]:
        return f"{wanted} to {given}; the trainer's other weights are {formats[0]}"
    return ""


def dominant_formats(pairs: Pairs) -> tuple[str, str]:
    """The floating-point format that holds most elements, at the trainer and at the engine.

    Without a floating-point weight at the engine the format is "".
    """
    both: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for pair in pairs.values():
        for counts, piece in zip(both, pair, strict=True):
            if is_float(piece.tensor.fmt):
                size = elements(piece.tensor)
                counts[piece.tensor.fmt] = counts.get(piece.tensor.fmt, 0) + size
    first, second = (max(counts, key=counts.__getitem__, default="") for counts in both)
    return first, second


def _without_prefix(left: Side, right: Side) -> tuple[Source, Source] | None:
    """Both sources, one without a prefix that all its matching names have; None without one."""
    for side, other in ((left, right), (right, left)):
        longest = max(other.pieces, key=len, default="")
        prefixes = {k.removesuffix(longest) for k in side.pieces if k.endswith(f".{longest}")}
        if not longest or len(prefixes) != 1:
            continue
        segments = prefixes.pop().removesuffix(".").split(".")
        while segments and segments[-1] in names.rules().wrappers["leading"]:
            segments.pop()
        prefix = ".".join([*segments, ""])
        renamed = {
            name.partition(prefix)[2] if prefix in name else name: tensor
            for name, tensor in side.source.tensors.items()
        }
        shorter = replace(side.source, tensors=renamed)
        return (shorter, other.source) if side is left else (other.source, shorter)
    return None


def no_common_name(left: Side, right: Side) -> str:
    """Why no tensor of the trainer (left) was paired with one of the engine (right), in words."""
    for whose, side in (("trainer", left), ("engine", right)):
        if not side.pieces:
            return f"the {whose} holds no tensor that can be compared"
    some = [", ".join(list(side.pieces)[:2]) for side in (left, right)]
    return f"no name is shared: trainer {some[0]}; engine {some[1]}; add a rule to names.toml"
