"""The PPO core's benchmarks, as pytest-benchmark writes them: one row per contender and step."""

import json
from dataclasses import dataclass
from pathlib import Path

from precision_lib.jsonio import Json


class ResultsError(Exception):
    """The file holds no benchmarks of the PPO core, or is not a results file."""


@dataclass(frozen=True)
class Row:
    """One contender in one step and format; times in milliseconds, memory in MiB."""

    step: str
    shape: tuple[int, ...]
    fmt: str
    contender: str
    kind: str
    version: str
    ms: float
    spread: float
    peak_mib: float
    input_mib: float
    floor: float
    error: float

    @property
    def accurate(self) -> bool:
        """True when the error is within the limit of FP32 arithmetic."""
        return self.error <= 1


@dataclass(frozen=True)
class Benchmarks:
    """Rows of one run, the machine as its rows show it, and when it was."""

    rows: tuple[Row, ...]
    machine: tuple[tuple[str, str], ...]
    day: str


_HOW = "write one with pytest -m benchmark --benchmark-json=FILE"


def load_results(path: Path) -> Benchmarks:
    """The benchmarks in what ``pytest --benchmark-json`` wrote.

    Raises:
        ResultsError: when it cannot be read or is something else; the message says what to do.
    """
    try:
        return results_of(load_plain(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is damaged ({error!r}); {_HOW}") from None


def load_plain(path: Path) -> dict[str, Json]:
    """The JSON of ``pytest --benchmark-json``.

    Raises:
        ResultsError: as :func:`load_results`.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}; {_HOW}") from None
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON ({error}); {_HOW}") from None
    if not isinstance(results, dict) or "benchmarks" not in results:
        raise ResultsError(f"{path} is no results file of pytest-benchmark; {_HOW}")
    return results


def results_of(results: dict[str, Json]) -> Benchmarks:
    """The benchmarks of the PPO core in pytest-benchmark's object; others are passed over."""
    entries = [(entry["extra_info"], entry["stats"]) for entry in results["benchmarks"]]
    rows = tuple(_row(*entry) for entry in entries if "contender" in entry[0] and entry[1])
    machine = results["machine_info"]
    names = ("python_version", "torch", "threads", "machine")
    facts = tuple((name, str(machine[name])) for name in names if name in machine)
    return Benchmarks(rows, facts, str(results.get("datetime", "unknown"))[:10])


def _row(info: dict[str, Json], stats: dict[str, Json]) -> Row:
    return Row(
        step=info["step"],
        shape=tuple(info["shape"]),
        fmt=info["format"],
        contender=info["contender"],
        kind=info["kind"],
        version=info["version"],
        ms=1e3 * stats["median"],
        spread=stats["iqr"] / stats["median"],
        peak_mib=info["peak_mib"],
        input_mib=info["input_mib"],
        floor=info["time_over_floor"],
        error=float(info["error_over_limit"]),
    )
