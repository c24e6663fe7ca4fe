"""Cells of a record as a picture needs them: by hypothesis, and one of each that are the same.

Cells of the same formats and the same damage are one curve that carries all their names.
"""

from typing import Any, NamedTuple

from precision_lib.reporting.numbers import two

Block = dict[str, Any]


class Group(NamedTuple):
    """Configurations that are the same to a hypothesis, and the cell of the first of them."""

    names: tuple[str, ...]
    cell: dict[str, Any]

    @property
    def label(self) -> str:
        """The first name, and how many more."""
        more = len(self.names) - 1
        return self.names[0] + (f" (+{more})" if more else "")


def cells_of(block: Block, hypothesis: str) -> dict[str, dict[str, Any]]:
    """Configuration to its cell, in the order of the record."""
    return {c["configuration"]: c for c in block["cells"] if c["hypothesis"] == hypothesis}


def groups(block: Block, hypothesis: str) -> list[Group]:
    """Cells of ``hypothesis``, those of equal formats and equal damage together."""
    decision = block["thresholds"][hypothesis]
    found: dict[Any, list[dict[str, Any]]] = {}
    for cell in cells_of(block, hypothesis).values():
        formats = block["matrix"][cell["configuration"]]
        key = (
            *(formats.get(c) for c in (*decision["components"], "lm_head")),
            str(cell["metrics"][decision["metric"]]["value"]),
        )
        found.setdefault(key, []).append(cell)
    return [Group(tuple(c["configuration"] for c in same), same[0]) for same in found.values()]


def same_as(found: list[Group]) -> str:
    """A sentence about who stands for whom; empty where all differ."""
    parts = [f"{g.names[0]} also stands for {', '.join(g.names[1:])}" for g in found if g.names[1:]]
    return f"In the components that matter here, {'; '.join(parts)}." if parts else ""


def number(value: Any) -> float:
    """A figure of a record; one that is not finite stands there as its name, a missing as null."""
    return float("nan") if value is None else float(value)


def shown(value: Any) -> str:
    """A figure of a record with two digits; a dash where there is none."""
    return "–" if value is None else two(float(value))


def with_interval(metric: dict[str, Any] | None) -> str:
    """Value and 95 % interval; a dash where the cell lacks the metric."""
    if metric is None:
        return "–"
    value, low, high = (shown(metric[k]) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def share(value: Any) -> str:
    """A share as a percentage with one decimal."""
    return "–" if value is None else f"{100 * float(value):.1f} %"
