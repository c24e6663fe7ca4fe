"""Read a results directory, and make its pictures and its page.

Everything is read and drawn before the first file is written. A damaged file ends it with that
file's name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from precision_lib.jsonio import write_bytes
from precision_lib.phases.sweep import RECORD
from precision_lib.record.files import load_record, load_self_test, load_sweep
from precision_lib.reporting import benchmarks
from precision_lib.reporting.page import PAGE, page
from precision_lib.reporting.plots.appearance import rendered
from precision_lib.reporting.reproduction import MEASURE, plain
from precision_lib.reporting.results import Results, ResultsError
from precision_lib.reporting.sections import sections

T = TypeVar("T")


def load_results(directory: Path) -> Results:
    """Everything that ``directory`` holds.

    Raises:
        ResultsError: it holds nothing of it, or a file is damaged or of something else.
    """
    own, below = directory / RECORD, directory / "sweep" / RECORD
    results = Results(
        shown(directory),
        report=_read(load_record, directory / "report.json"),
        sweep=_read(load_sweep, own if own.exists() else below),
        benchmarks=_read(benchmarks.load_results, directory / "benchmarks.json"),
        self_test=_read(load_self_test, directory / "self_test.json"),
        sweep_below="" if own.exists() else "/sweep",
    )
    if not (results.report or results.sweep or results.benchmarks or results.self_test):
        looked = f"report.json, sweep/{RECORD}, benchmarks.json, self_test.json"
        made = "\n".join(f"  {plain(results, kind)}" for kind in MEASURE)
        raise ResultsError(f"{directory} holds none of {looked}; these commands make them:\n{made}")
    return results


def _read(reader: Callable[[Path], T], path: Path) -> T | None:
    """The content of a file, None where it does not exist."""
    try:
        return reader(path) if path.exists() else None
    except (ValueError, benchmarks.ResultsError) as error:
        raise ResultsError(str(error)) from None


def shown(directory: Path) -> str:
    """How a page calls a directory: as it was given, but no machine's absolute path."""
    return directory.name if directory.is_absolute() else directory.as_posix()


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
