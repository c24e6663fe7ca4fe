"""The ranks of a tensor-parallel engine against the trainer's whole tensors.

The hazard. A shard at the wrong rank has the right norm, and the engine's text looks nearly right.
So each rank is compared with the part that it should hold, and then with the parts of other ranks.

The trainer's pieces are cut as the shapes of each rank say (:mod:`weights.shards`), and each rank
is compared as a side of its own. With expert parallelism a rank holds whole experts, numbered
from 0; they are numbered as the trainer's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from precision_lib.weights.compare import compare, judge, no_common_name, sort_findings
from precision_lib.weights.context import Context
from precision_lib.weights.files import Source
from precision_lib.weights.findings import Contract, Finding, Outcome
from precision_lib.weights.layout import Piece, Side, rank_sides
from precision_lib.weights.pairs import Pairs, paired, tie
from precision_lib.weights.relation import relation
from precision_lib.weights.shards import Cut, cut_for
from precision_lib.weights.tensors import elements

_EXPERT = re.compile(r"(^|\.)experts\.(\d+)\.")


@dataclass(frozen=True)
class _Group:
    """All ranks: the trainer whole, and each rank's side under the trainer's names."""

    trainer: Side
    engines: list[Side]
    experts: dict[str, int]

    def cut(self, whole: Piece, given: Piece, rank: int) -> Piece | str | None:
        """The part of ``whole`` that ``rank`` should hold in the shape of ``given``.

        None where it is rows beyond the vocabulary; a sentence where the manifest lacks it.
        """
        ranks = len(self.engines)
        shape = given.tensor.shape
        cut = cut_for(whole.key, whole.tensor.shape, shape, rank, ranks) or Cut(None)
        if cut.axis == 0 and cut.start == cut.stop:
            return None
        tensor, scale = cut.of(whole.tensor), whole.scale
        if scale is not None and given.scale is not None and cut.axis is not None:
            part = cut_for(whole.key, scale.shape, given.scale.shape, rank, ranks)
            scale = part.of(scale) if part else None
        if tensor is None or (scale is None) != (whole.scale is None):
            return (
                f"the trainer's manifest has no hash of rank {rank}'s part of {whole.name}; write "
                f"it with tensor_parallel={ranks}"
            )
        return replace(whole, tensor=tensor, scale=scale, stored=f"{whole.stored}{cut.words()}")


def compare_engine(
    trainer: Source,
    engines: Sequence[Source],
    contract: Contract | None = None,
    older: Sequence[Source] = (),
) -> Outcome:
    """Compare an engine that is one source, or one for each rank, with the trainer."""
    if len(engines) == 1:
        return compare(trainer, engines[0], contract, older)
    return compare_ranks(trainer, engines, contract, older)


def compare_ranks(
    trainer: Source,
    engines: Sequence[Source],
    contract: Contract | None = None,
    older: Sequence[Source] = (),
) -> Outcome:
    """Compare the ranks of an engine, in their order, with the trainer.

    Args:
        older: earlier weights of the trainer, the latest first.
    """
    left, rights = rank_sides(trainer, engines)
    before = [rank_sides(source, engines)[0] for source in older]
    for side in (left, *before):
        for right in rights:
            tie(side, right)
    group = _Group(left, *_numbered(left, rights))
    outcome = Outcome(unread=dict(left.unread))
    sides = [_cut_side(group, left, rank, outcome) for rank in range(len(rights))]
    pairs = [_paired(group, rank, sides[rank], outcome) for rank in range(len(rights))]
    if not any(pairs):
        outcome.findings.clear()
        outcome.notes.append(no_common_name(left, rights[0]))
        return outcome
    misplaced = _misplaced(group, pairs)
    for rank, right in enumerate(group.engines):
        earlier = [_cut_side(group, side, rank, Outcome()) for side in before]
        _judge_rank(rank, pairs[rank], (sides[rank], right), earlier, contract, misplaced, outcome)
    _merge(outcome)
    outcome.notes.append(f"{len(engines)} ranks; a tensor is counted once for each rank")
    sort_findings(outcome)
    return outcome


def _numbered(left: Side, rights: list[Side]) -> tuple[list[Side], dict[str, int]]:
    """Each rank's side with the trainer's expert numbers, and how many experts a rank holds."""
    experts: dict[str, int] = {}
    for owner, total in _expert_counts(left).items():
        held = {_expert_counts(right).get(owner, 0) for right in rights}
        if len(held) == 1 and (count := held.pop()) * len(rights) == total:
            experts[owner] = count
    sides = []
    for rank, right in enumerate(rights):
        side = replace(right, pieces={})
        for key in list(right.pieces):
            for piece in right.pieces[key]:
                side.add(_renumbered(piece, experts, rank))
        sides.append(side)
    return sides, experts


def _expert_counts(side: Side) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key in side.pieces:
        match = _EXPERT.search(key)
        if match:
            owner = key[: match.start()]
            counts[owner] = max(counts.get(owner, 0), int(match[2]) + 1)
    return counts


def _renumbered(piece: Piece, experts: dict[str, int], rank: int) -> Piece:
    match = _EXPERT.search(piece.key)
    count = experts.get(piece.key[: match.start()], 0) if match else 0
    if not count:
        return piece

    def numbered(found: re.Match[str]) -> str:
        return f"{found[1]}experts.{int(found[2]) + rank * count}."

    key, name = (_EXPERT.sub(numbered, text, count=1) for text in (piece.key, piece.name))
    return replace(piece, key=key, name=name)


def _cut_side(group: _Group, whole: Side, rank: int, outcome: Outcome) -> Side:
    """What ``rank`` should hold of a trainer's side."""
    side = replace(whole, pieces={}, adapters={}, unread_keys=set(whole.unread_keys))
    for layer, matrices in whole.adapters.items():
        side.adapters[layer] = _cut_adapter(group, whole, layer, matrices, rank)
    held = group.engines[rank].pieces
    for key, pieces in whole.pieces.items():
        match = _EXPERT.search(key)
        if key not in held:
            if not (match and key[: match.start()] in group.experts):
                side.pieces[key] = pieces
            continue
        for piece in pieces:
            part = group.cut(piece, held[key][0], rank)
            if isinstance(part, str):
                outcome.unread[f"rank {rank}: {held[key][0].stored}"] = part
                side.unread_keys.add(key)
            elif part is None:
                side.unread_keys.add(key)
                _check_padding(rank, held[key][0], outcome)
            else:
                side.add(part)
    return side


def _cut_adapter(
    group: _Group, whole: Side, layer: str, matrices: dict[str, Piece], rank: int
) -> dict[str, Piece]:
    """LoRA matrices of a rank's part: rows of B, or columns of A."""
    given = group.engines[rank].pieces.get(layer)
    if given is None or layer not in whole.pieces:
        return dict(matrices)
    shapes = whole.pieces[layer][0].tensor.shape, given[0].tensor.shape
    cut = cut_for(layer, *shapes, rank, len(group.engines)) or Cut(None)
    cut_matrices = dict(matrices)
    for matrix, axis in (("B", 0), ("A", 1)):
        part = cut.of(matrices[matrix].tensor) if cut.axis == axis and matrix in matrices else None
        if part is not None:
            cut_matrices[matrix] = replace(matrices[matrix], tensor=part)
    return cut_matrices


def _check_padding(rank: int, given: Piece, outcome: Outcome) -> None:
    """A rank that holds nothing but rows beyond the vocabulary: zeros."""
    statistics = given.tensor.statistics()
    if statistics is not None and statistics.zeros == elements(given.tensor):
        outcome.count("without padded rows")
        return
    detail = f"rank {rank}: rows beyond the trainer's, and not 0"
    outcome.findings.append(Finding("extra", given.name, detail, engine=given.stored))


def _paired(group: _Group, rank: int, side: Side, outcome: Outcome) -> Pairs:
    """Pairs of one rank; what one side has alone is a finding of this rank."""
    right, outcome_of_rank = group.engines[rank], Outcome()
    outcome.unread |= {f"rank {rank}: {k}": v for k, v in right.unread.items()}
    pairs = paired(side, right, outcome_of_rank)
    _add(rank, outcome_of_rank, outcome)
    return pairs


def _misplaced(group: _Group, pairs: list[Pairs]) -> list[dict[str, Finding]]:
    """For each rank, key -> the finding of a shard that another rank should hold."""
    equal = [{k for k, (a, b) in some.items() if _same(a, b)} for some in pairs]
    findings: list[dict[str, Finding]] = [{} for _ in pairs]
    for rank, some in enumerate(pairs):
        for key in sorted(some.keys() - equal[rank]):
            wanted, given = some[key]
            for other, part in _parts_of_others(group, key, given, rank):
                if not _same(part, given):
                    continue
                kind = "duplicated" if part.key in equal[other] else "swapped"
                detail = f"holds the shard of rank {other}, {part.stored}"
                stored = (wanted.stored, given.stored)
                findings[rank][key] = Finding(kind, wanted.name, detail, True, *stored)
                break
    return findings


def _parts_of_others(group: _Group, key: str, given: Piece, rank: int) -> list[tuple[int, Piece]]:
    """The trainer's parts of the same tensor that other ranks should hold."""
    parts: list[tuple[int, Piece]] = []
    match = _EXPERT.search(key)
    count = group.experts.get(key[: match.start()], 0) if match else 0
    for other in range(len(group.engines)):
        whole = group.trainer.pieces[key][0]
        if count:
            shifted = _renumbered(whole, group.experts, other - rank)
            whole = group.trainer.pieces[shifted.key][0]
        part = group.cut(whole, given, other) if other != rank else None
        if isinstance(part, Piece):
            parts.append((other, part))
    return parts


def _same(wanted: Piece, given: Piece) -> bool:
    if given.scale is not None or wanted.scale is not None:
        return False
    return relation(wanted.tensor, given.tensor).equal


def _judge_rank(
    rank: int,
    pairs: Pairs,
    sides: tuple[Side, Side],
    before: list[Side],
    contract: Contract | None,
    misplaced: list[dict[str, Finding]],
    outcome: Outcome,
) -> None:
    context = Context(pairs, before, contract or Contract())
    outcome_of_rank = Outcome(findings=list(misplaced[rank].values()))
    rest = {key: pair for key, pair in pairs.items() if key not in misplaced[rank]}
    outcome_of_rank.elements += sum(elements(pairs[key][1].tensor) for key in misplaced[rank])
    judge(rest, *sides, context, outcome_of_rank)
    _add(rank, outcome_of_rank, outcome)


def _add(rank: int, found: Outcome, outcome: Outcome) -> None:
    """Add what one rank said to the whole."""
    for finding in found.findings:
        detail = f"rank {rank}: {finding.detail}"
        outcome.findings.append(replace(finding, detail=detail))
    for way, count in found.equal.items():
        outcome.equal[way] = outcome.equal.get(way, 0) + count
    outcome.unread |= {f"rank {rank}: {name}": why for name, why in found.unread.items()}
    outcome.must_stay |= {f"rank {rank}: {k}": v for k, v in found.must_stay.items()}
    outcome.ignored += [name for name in found.ignored if name not in outcome.ignored]
    outcome.notes += [note for note in found.notes if note not in outcome.notes]
    outcome.elements += found.elements


def _merge(outcome: Outcome) -> None:
    """One finding for each kind and tensor, with the evidence of every rank."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in outcome.findings:
        place = (finding.kind, finding.tensor)
        if place in merged:
            earlier = merged[place]
            detail = f"{earlier.detail}; {finding.detail}"
            exact = earlier.exact and finding.exact
            finding = replace(earlier, detail=detail, exact=exact)
        merged[place] = finding
    outcome.findings = list(merged.values())
