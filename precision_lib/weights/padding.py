"""Vocabulary rows that one side adds: engines pad with zeros, Megatron with rows of its own."""

from dataclasses import replace

from precision_lib.weights import names
from precision_lib.weights.layout import Piece
from precision_lib.weights.relation import relation
from precision_lib.weights.tensors import Tensor, elements


def without_padding(shared: str, trainer: Piece, engine: Piece) -> str | None:
    """None where the common rows are not equal, "" where they are, else what the added rows hold.

    Rows that the trainer adds are never sampled and may hold anything; rows of the engine are 0.
    """
    wanted, given = trainer.tensor, engine.tensor
    if not names.is_padded(shared) or len(wanted.shape) != 2 or len(given.shape) != 2:
        return None
    if wanted.shape[1] != given.shape[1] or wanted.shape[0] == given.shape[0]:
        return None
    rows = min(wanted.shape[0], given.shape[0])
    first, second = (_rows(tensor, 0, rows) for tensor in (wanted, given))
    if first is None or second is None or not relation(first, second).equal:
        return None
    if given.shape[0] <= rows:
        return ""
    added = _rows(given, rows, given.shape[0])
    if added is None:  # a manifest holds the rows before trailing zeros as a part
        return ""
    statistics = added.statistics()
    if statistics is not None and statistics.zeros == elements(added):
        return ""
    return f"rows {rows}:{given.shape[0]} are no rows of the trainer, and not 0"


def common_rows(shared: str, trainer: Piece, engine: Piece) -> tuple[Piece, Piece]:
    """Both pieces without the rows that one of them has alone, where a vocabulary is padded."""
    wanted, given = trainer.tensor, engine.tensor
    if not names.is_padded(shared) or wanted.shape[1:] != given.shape[1:]:
        return trainer, engine
    rows = min(wanted.shape[0], given.shape[0])
    first, second = (_rows(tensor, 0, rows) for tensor in (wanted, given))
    if first is None or second is None or wanted.shape == given.shape:
        return trainer, engine
    return replace(trainer, tensor=first), replace(engine, tensor=second)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor | None:
    width = tensor.shape[1]
    return tensor.part(((start * width, stop * width),), (stop - start, width))
