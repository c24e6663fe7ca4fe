"""Pieces of both sides paired by their shared names, and what one side has alone."""

from dataclasses import replace

from precision_lib.weights import names
from precision_lib.weights.findings import Finding, Outcome
from precision_lib.weights.layout import Piece, Side
from precision_lib.weights.relation import relation

Pairs = dict[str, tuple[Piece, Piece]]


def tie(left: Side, right: Side) -> None:
    """Give a side that ties its head the embedding under the head's name, where the other has one.

    A configuration that says "not tied" is believed.
    """
    head = names.rules().tied_head
    for side, other in ((left, right), (right, left)):
        if head in side.pieces or head not in other.pieces:
            continue
        config = side.source.config.get("text_config") or side.source.config
        if config.get("tie_word_embeddings") is False:
            continue
        for name in names.rules().tied_embedding:
            for piece in side.pieces.get(name, [])[:1]:
                side.add(replace(piece, key=head, name=other.pieces[head][0].name))


def paired(left: Side, right: Side, outcome: Outcome) -> Pairs:
    """Pairs by shared name; what one side has alone becomes a finding or is ignored."""
    pairs: Pairs = {}
    _move_matrices(left, right)
    for shared in sorted(left.pieces.keys() | right.pieces.keys()):
        wanted, given = left.pieces.get(shared, []), right.pieces.get(shared, [])
        if shared in left.unread_keys | right.unread_keys:
            continue  # the fused tensor is listed
        if not wanted or not given:
            alone = (wanted or given)[0]
            if names.may_be_alone(shared, "trainer" if wanted else "engine"):
                outcome.ignored.append(alone.stored)
            elif wanted:
                detail = "the engine has no tensor of this name"
                outcome.findings.append(
                    Finding("undelivered", alone.name, detail, trainer=alone.stored)
                )
            else:
                detail = "the trainer has no tensor of this name"
                outcome.findings.append(Finding("extra", alone.name, detail, engine=alone.stored))
        elif any(not relation(wanted[0].tensor, p.tensor).equal for p in wanted[1:]):
            outcome.unread[wanted[0].stored] = "the trainer has two tensors of this name"
        else:
            pairs[shared] = (wanted[0], _nearest(wanted[0], given))
            _repeated(pairs[shared], given, outcome)
    return pairs


def _move_matrices(left: Side, right: Side) -> None:
    """LoRA matrices are compared one by one, except where one side has both and the other none."""
    for layer in left.adapters.keys() | right.adapters.keys():
        matrices = [side.adapters.get(layer, {}) for side in (left, right)]
        whole = sorted(len(some) for some in matrices) == [0, 2]
        for side in (left, right) if not whole else ():
            for matrix, piece in side.adapters.pop(layer, {}).items():
                shared = f"{layer.removesuffix('.weight')}.lora_{matrix}.weight"
                side.add(replace(piece, key=shared))


def _nearest(wanted: Piece, given: list[Piece]) -> Piece:
    """The one of several engine tensors that differs, if one does: it may be the one in use."""
    for piece in given if len(given) > 1 else []:
        if not relation(wanted.tensor, piece.tensor).equal:
            return piece
    return given[0]


def _repeated(pair: tuple[Piece, Piece], given: list[Piece], outcome: Outcome) -> None:
    for piece in given:
        if piece is not pair[1] and relation(pair[0].tensor, piece.tensor).equal:
            same = relation(pair[0].tensor, pair[1].tensor).equal
            if same:
                detail = f"the engine has it twice, as {pair[1].stored} too"
                outcome.findings.append(pair[0].finding("duplicated", detail, piece))
