"""Read a results directory, and make its pictures and its page.

Everything is read and drawn before the first file is written. A damaged file ends it with that
file's name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from precision_lib.jsonio import load_object, write_bytes
from precision_lib.phases.sweep import RECORD, load_sweep_record
from precision_lib.records.record import load_record
from precision_lib.reporting import benchmarks
from precision_lib.reporting.page import PAGE, page
from precision_lib.reporting.plots.appearance import rendered
from precision_lib.reporting.reproduction import plain
from precision_lib.reporting.results import Results, ResultsError
from precision_lib.reporting.sections import sections

#: Where each file is looked for, below the results directory.
PLACES = {
    "report": ("report.json",),
    "sweep": (RECORD, f"sweep/{RECORD}"),
    "benchmarks": ("benchmarks.json",),
    "self_test": ("self_test.json",),
}
SELF_TEST_SCHEMA = 1


def load_results(directory: Path) -> Results:
    """Everything that ``directory`` holds.

    Raises:
        ResultsError: it holds nothing of it, or a file is damaged or of something else.
    """
    found: dict[str, Any] = {}
    for kind, places in PLACES.items():
        path = next((directory / p for p in places if (directory / p).exists()), None)
        if path is not None:
            found[kind] = _read(_READERS[kind], path)
            if path == directory / RECORD:
                found["sweep_below"] = ""
    name = shown(directory)
    if not found:
        looked = ", ".join(places[-1] for places in PLACES.values())
        made = "\n".join(f"  {plain(Results(name), kind)}" for kind in PLACES)
        raise ResultsError(f"{directory} holds none of {looked}; these commands make them:\n{made}")
    return Results(name, **found)


def shown(directory: Path) -> str:
    """How a page calls a directory: as it was given, but no machine's absolute path."""
    return directory.name if directory.is_absolute() else directory.as_posix()


def _read(reader: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    try:
        return reader(path)
    except (ValueError, benchmarks.ResultsError) as error:
        raise ResultsError(str(error)) from None


def load_self_test(path: Path) -> dict[str, Any]:
    """Read a ``self_test.json`` and check that it is one.

    Raises:
        ValueError: unreadable, truncated, of something else; the message says what to do.
    """
    how = "`precision-forensics self-test` writes one"
    return load_object(path, SELF_TEST_SCHEMA, "a self-test", how)


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "report": load_record,
    "sweep": load_sweep_record,
    "benchmarks": benchmarks.load_results,
    "self_test": load_self_test,
}


def analyse(results: Results, output: Path) -> list[Path]:
    """Draw every picture as PNG and SVG, and the page, into ``output``; the files.

    Nothing is written before all of it is drawn.

    Raises:
        ResultsError: a file lacks what this version draws.
        OSError: a file cannot be written.
    """
    parts = sections(results)
    drawn = {p.name: rendered(p.figure) for part in parts for p in part.pictures}
    files = {f"{name}.{suffix}": b for name, pair in drawn.items() for suffix, b in pair.items()}
    files[PAGE] = page(results, parts, drawn, shown(output)).encode()
    for name, content in files.items():
        write_bytes(output / name, content)
    return [output / name for name in files]
