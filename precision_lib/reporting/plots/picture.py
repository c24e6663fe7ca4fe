"""A picture with its caption, unit, table of numbers and command."""

from dataclasses import dataclass
from typing import Any


class NothingToDrawError(ValueError):
    """A file is as it should be, and holds nothing to draw; the message says what it lacks."""


@dataclass(frozen=True)
class Table:
    """A table as text; the first column names the rows, the others are numbers or words."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure, what is seen in it, and the same numbers as a table.

    Attributes:
        name: of its files, without a suffix.
        caption: what is seen, with the units.
        alt: what a reader who cannot see it needs to know.
    """

    name: str
    figure: Any
    caption: str
    alt: str
    table: Table
