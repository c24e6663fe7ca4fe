"""Markdown tables, and documents whose figures a command writes.

A document marks the places that a command fills; nothing else is touched.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from precision_lib.jsonio import write_text


class MarkerError(Exception):
    """A document cannot be filled; the message says which and what it lacks."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A Markdown table; the first column is text, the others are ``numbers``, aligned right."""
    other = "---:|" if numbers else "---|"
    lines = ["| " + " | ".join(headings) + " |", "|---|" + other * (len(headings) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the file's two marker comments of ``name``, atomically.

    The markers are ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``, each on a line of its own.

    Raises:
        MarkerError: when the file or one of its markers is missing; the file stays as it was.
    """
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MarkerError(f"{path}: {error.strerror}") from None
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise MarkerError(f"{path} needs the two lines '{begin}' and '{end}', once, in this order")
    before, rest = old.split(begin)
    new = f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}"
    write_text(path, new)
