"""Cells of a record as a picture needs them: one of each that are the same to a hypothesis.

Cells of the same formats and the same damage are one curve that carries all their names.
"""

from typing import NamedTuple

from precision_lib.forensics.verdicts import Cell
from precision_lib.record.record import Record


class Group(NamedTuple):
    """Configurations that are the same to a hypothesis, and the cell of the first of them."""

    names: tuple[str, ...]
    cell: Cell

    @property
    def label(self) -> str:
        """The first name, and how many more."""
        more = len(self.names) - 1
        return self.names[0] + (f" (+{more})" if more else "")


def groups(record: Record, hypothesis: str) -> list[Group]:
    """Cells of ``hypothesis``, those of equal formats and equal damage together."""
    decision = record.thresholds[hypothesis]
    same: dict[tuple[str, ...], list[Cell]] = {}
    for name, cell in record.cells_of(hypothesis).items():
        matrix = record.matrix[name]
        formats = (matrix.get(c, "") for c in (*decision.components, "lm_head"))
        damage = str(cell.metrics[decision.metric].value)
        same.setdefault((*formats, damage), []).append(cell)
    return [Group(tuple(c.configuration for c in cells), cells[0]) for cells in same.values()]


def same_as(found: list[Group]) -> str:
    """A sentence about who stands for whom; empty where all differ."""
    parts = [f"{g.names[0]} also stands for {', '.join(g.names[1:])}" for g in found if g.names[1:]]
    return f"In the components that matter here, {'; '.join(parts)}." if parts else ""
