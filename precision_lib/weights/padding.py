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
    whole, part = given.statistics(), second.statistics()
    added = elements(given) - elements(second)
    if whole is not None and part is not None and whole.zeros - part.zeros == added:
        return ""
    return f"rows {rows}:{given.shape[0]} are no rows of the trainer, and not 0"


#: Megatron pads a vocabulary to a multiple of 128 and more, others to one of 64.
MULTIPLE = 64


def rows_lost(trainer: Piece, engine: Piece, tokens: int | None) -> str:
    """Rows of real tokens that the engine lacks; "" where it lacks padding alone.

    Args:
        tokens: size of the vocabulary, None where no configuration says it. Then a trainer whose
            rows are no multiple of 64 is not padded.
    """
    rows, held = trainer.tensor.shape[0], engine.tensor.shape[0]
    real = min(rows, tokens) if tokens else (0 if rows % MULTIPLE == 0 else rows)
    if held >= real:
        return ""
    return f"holds rows 0:{held} only, of {real} tokens"


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
