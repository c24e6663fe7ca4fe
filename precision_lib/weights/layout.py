"""One side as *pieces*: the tensors of one expert, one projection, one norm, by shared name.

The hazard. Fused tensors are split by the sizes of the other side or of the configuration. A split
at a wrong row would call healthy weights different, so a size that is not known is not guessed:
the tensor is compared whole where both sides fuse it, and listed otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from precision_lib.weights import names
from precision_lib.weights.files import Source
from precision_lib.weights.findings import Finding
from precision_lib.weights.model_config import heads
from precision_lib.weights.scale_parts import covers_expert, expert_scale, row_scale, scales_of
from precision_lib.weights.tensors import Range, Tensor


@dataclass(frozen=True)
class Piece:
    """A tensor as both sides can have it.

    Attributes:
        key: the name that both sides share. name: what a finding shows.
        stored: name of the stored tensor that holds it, with the rows where it holds more.
        tensor: its codes. scale: its scale where it is quantised.
        shares_scale: other parts of the stored tensor have the same scale.
    """

    key: str
    name: str
    stored: str
    tensor: Tensor
    scale: Tensor | None = None
    shares_scale: bool = False

    def finding(self, kind: str, detail: str, given: "Piece") -> Finding:
        """An exact finding about this piece of the trainer and the one that the engine has."""
        return Finding(kind, self.name, detail, True, self.stored, given.stored)


@dataclass
class Side:
    """The pieces of one side.

    Attributes:
        pieces: by key; more than one where several stored tensors have one shared name.
        adapters: key of a weight -> {"A": piece, "B": piece} of LoRA.
        unread: stored names of which nothing can be said, with the reason.
        unread_keys: shared names of the parts of such a tensor.
        ignored: stored names that are no weights.
    empty: key -> piece of a tensor without elements.
    """

    source: Source
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    adapters: dict[str, dict[str, Piece]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    unread_keys: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)
    empty: dict[str, Piece] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        self.pieces.setdefault(piece.key, []).append(piece)


def sides(trainer: Source, engine: Source) -> tuple[Side, Side]:
    """Both sides split into pieces, each with the sizes of the other where it has none itself."""
    both = (_unsplit(trainer), _unsplit(engine))
    _keep_empty(*both)
    for side, other in (both, both[::-1]):
        rows = {k: p[0].tensor.shape for k, p in other.pieces.items() if p[0].tensor.shape}
        for config in (side.source.config, other.source.config):
            rows = _head_rows(side, config) | rows
        _split_heads(side, other, rows)
    return both


def _keep_empty(trainer: Side, engine: Side) -> None:
    """What is empty at the trainer was not packed: it is compared as any tensor."""
    for shared in trainer.empty:
        for side in (trainer, engine):
            piece = side.empty.get(shared)
            if piece is not None:
                del side.unread[piece.stored]
                side.unread_keys.discard(shared)
                side.add(piece)


def rank_sides(trainer: Source, engines: Sequence[Source]) -> tuple[Side, list[Side]]:
    """The trainer and each rank of an engine, split into pieces; a rank's pieces are shards."""
    left, rights = _unsplit(trainer), [_unsplit(engine) for engine in engines]
    rows: dict[str, tuple[int, ...]] = {}
    for config in (trainer.config, *(engine.config for engine in engines)):
        rows = _head_rows(left, config) | rows
    _split_heads(left, None, rows)
    for right in rights:
        _split_heads(right, None, _shard_rows(right, left, len(rights)))
    return left, rights


def _shard_rows(side: Side, whole: Side, ranks: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a rank's q, k and v by key: q is cut evenly, k and v share the other rows."""
    rows: dict[str, tuple[int, ...]] = {}
    for shared, pieces in side.pieces.items():
        fused = names.fused_rule(shared)
        tensor = pieces[0].tensor
        if fused is None or not tensor.shape or any(k not in whole.pieces for k in fused[1]):
            continue
        queries = whole.pieces[fused[1][0]][0].tensor.shape[0]
        rest = tensor.shape[0] - queries // ranks
        if queries % ranks == 0 and rest > 0 and rest % 2 == 0:
            sizes = (queries // ranks, rest // 2, rest // 2)
            for part, size in zip(fused[1], sizes, strict=False):
                rows[part] = (size, *tensor.shape[1:])
    return rows


def pieces_alone(source: Source) -> Side:
    """One side without another one: what its own configuration can split."""
    side = _unsplit(source)
    _split_heads(side, None, _head_rows(side, source.config))
    return side


def _unsplit(source: Source) -> Side:
    """Experts and equal halves are split; q, k and v are not yet."""
    side = Side(source)
    scales = scales_of(source.tensors)
    taken = {scale.name for scale in scales.values()}
    for name, tensor in source.tensors.items():
        shared = names.key(name)
        if name in taken or names.is_activation_scale(name):
            continue
        if names.is_unread(name):
            side.unread[name] = "a packed format that is not read"
            continue
        if not prod(tensor.shape):
            side.empty[shared] = Piece(shared, names.clean(name), name, tensor)
            side.unread[name] = "empty: it was packed after loading; write the manifest before that"
            side.unread_keys.update(names.parts_of(shared))
            continue
        piece = Piece(shared, names.clean(name), name, tensor, scales.get(name))
        adapter = names.adapter_of(shared)
        if adapter is not None:
            side.adapters.setdefault(adapter[0], {})[adapter[1]] = piece
            continue
        _add_all(side, piece, list(_expanded(piece)))
    return side


def _add_all(side: Side, piece: Piece, parts: list[Piece]) -> None:
    """Add the parts of ``piece``; all or none, since a manifest may lack some."""
    complete = sum(prod(part.tensor.shape) for part in parts) == prod(piece.tensor.shape)
    if not complete or any((part.scale is None) != (piece.scale is None) for part in parts):
        side.unread[piece.stored] = "a part or its scale is not in the manifest"
        return
    for part in parts:
        side.add(part)


def _expanded(piece: Piece) -> Iterable[Piece]:
    stacked = names.stacked_parts(piece.key)
    if stacked is not None and len(piece.tensor.shape) == 3:
        yield from _experts(piece, *stacked)
        return
    fused = names.fused_rule(piece.key)
    rows = piece.tensor.shape[0] if piece.tensor.shape else 0
    if fused is not None and fused[0].split == "equal" and rows % len(fused[1]) == 0:
        size = rows // len(fused[1])
        yield from _rows(
            piece, fused[1], [[(i * size, (i + 1) * size)] for i in range(len(fused[1]))]
        )
        return
    yield piece


def _experts(piece: Piece, owner: str, parts: list[str]) -> Iterable[Piece]:
    count, rows, columns = piece.tensor.shape
    if rows % len(parts):
        yield piece
        return
    size = rows // len(parts)
    shown = piece.name.rsplit(".", 1)[0]
    for expert in range(count):
        for i, part in enumerate(parts):
            first = (expert * rows + i * size) * columns
            tensor = piece.tensor.part(((first, first + size * columns),), (size, columns))
            if tensor is None:
                continue
            scale = None
            if piece.scale is not None:
                scale = expert_scale(piece.scale, (expert, count), (i, len(parts)), size)
            yield Piece(
                f"{owner}.{expert}.{part}.weight",
                f"{shown}.{expert}.{part}.weight",
                f"{piece.stored}[{expert}, {i * size}:{(i + 1) * size}]",
                tensor,
                scale,
                len(parts) > 1 and piece.scale is not None and covers_expert(piece.scale, count),
            )


def _rows(piece: Piece, keys: list[str], rows: list[list[Range]]) -> Iterable[Piece]:
    """Parts of a fused projection; ``rows`` has the row ranges of each."""
    width = prod(piece.tensor.shape[1:])
    head = piece.name.rsplit(".", 2)
    sizes = [sum(stop - start for start, stop in part) for part in rows]
    for i, (key, part) in enumerate(zip(keys, rows, strict=True)):
        flat = tuple((start * width, stop * width) for start, stop in part)
        tensor = piece.tensor.part(flat, (sizes[i], *piece.tensor.shape[1:]))
        if tensor is None:
            continue
        shown = ".".join([*head[:-2], *key.split(".")[-2:]])
        where = ", ".join(f"{start}:{stop}" for start, stop in part[:2])
        stored = f"{piece.stored}[{where}{', ...' if len(part) > 2 else ''}]"
        scale = piece.scale and row_scale(piece.scale, i, sizes)
        shares = piece.scale is not None and prod(piece.scale.shape) == 1
        yield Piece(key, shown, stored, tensor, scale, shares)


def _head_rows(side: Side, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of q, k and v by key, as the configuration says, where they fill the fused tensor."""
    known = heads(config)
    rows: dict[str, tuple[int, ...]] = {}
    if known is None:
        return rows
    count, groups, size = known
    for shared, pieces in side.pieces.items():
        fused = names.fused_rule(shared)
        tensor = pieces[0].tensor
        if fused is None or not tensor.shape or fused[0].split == "equal":
            continue
        if tensor.shape[0] == (count + 2 * groups) * size:
            for part, heads_of_part in zip(fused[1], (count, groups, groups), strict=True):
                rows[part] = (heads_of_part * size, *tensor.shape[1:])
    return rows


def _split_heads(side: Side, other: Side | None, rows: Mapping[str, tuple[int, ...]]) -> None:
    for shared in list(side.pieces):
        fused = names.fused_rule(shared)
        if fused is None or fused[0].split == "equal":
            continue
        if other is not None and shared in other.pieces and fused[1][0] not in rows:
            continue  # both sides fuse it: it is compared whole
        for piece in side.pieces.pop(shared):
            parts = _head_parts(piece, fused, rows, side, other)
            for part in parts:
                side.add(part)
            if not parts:
                side.unread_keys.update(fused[1])
                side.unread[piece.stored] = (
                    "the sizes of q, k and v are not known; put config.json beside it"
                )


def _head_parts(
    piece: Piece,
    fused: tuple[names.Fused, list[str]],
    rows: Mapping[str, tuple[int, ...]],
    side: Side,
    other: Side | None,
) -> list[Piece]:
    rule, keys = fused
    if any(part not in rows for part in keys):
        return []
    sizes = [rows[part][0] for part in keys]
    if sum(sizes) != piece.tensor.shape[0]:
        return []
    if rule.split == "heads":
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        ranges = [[(start, start + size)] for start, size in zip(starts, sizes, strict=True)]
    else:
        size = _head_size(side, other)
        if size is None or sizes[1] % size or sizes[0] % sizes[1]:
            return []
        ranges = _group_rows(sizes[1] // size, sizes[0] // sizes[1], size)
    parts = list(_rows(piece, keys, ranges))
    return parts if len(parts) == len(keys) else []


def _head_size(side: Side, other: Side | None) -> int | None:
    known = [heads(one.source.config) for one in (side, other) if one is not None]
    return next((size for _, _, size in filter(None, known)), None)


def _group_rows(groups: int, queries: int, size: int) -> list[list[Range]]:
    """Rows of q, k and v where each group has its query heads, a key head, then a value head."""
    stride = (queries + 2) * size
    offsets = ((0, queries * size), (queries * size, (queries + 1) * size))
    last = ((queries + 1) * size, stride)
    return [
        [(g * stride + low, g * stride + high) for g in range(groups)]
        for low, high in (*offsets, last)
    ]
