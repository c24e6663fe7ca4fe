"""One section of the page, and what becomes of a file that cannot be shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from precision_lib.reporting.plots.picture import NothingToDrawError, Picture, Table
from precision_lib.reporting.reproduction import measuring, plain
from precision_lib.reporting.results import Results, ResultsError


@dataclass(frozen=True)
class Section:
    """One section of the page; ``place`` is its anchor.

    Attributes:
        items: a list after the paragraphs.
        missing: why there is nothing to show; "" where there is something.
        command: what measures it (again).
        alarm: True where a reader must not overlook it.
    """

    place: str
    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: str = ""
    command: str = ""
    alarm: bool = False


def checked(results: Results, kind: str, read: Callable[[], Any]) -> Any:
    """``read()``, where what a file lacks becomes an error that names the file.

    Raises:
        ResultsError: it lacks a field, or holds something else in its place.
    """
    try:
        return read()
    except NothingToDrawError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ResultsError(
            f"{results.directory}/{kind}.json cannot be shown ({type(error).__name__}: {error}): "
            f"it is damaged or of another version; make it again: {plain(results, kind)}"
        ) from error


def command_of(results: Results, kind: str) -> str:
    """The command that measures one of the files, see :func:`again.measuring`.

    Raises:
        ResultsError: the file lacks what the command is made from.
    """
    command: str = checked(results, kind, lambda: measuring(results, kind))
    return command
