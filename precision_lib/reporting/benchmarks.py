"""The PPO core's benchmarks, as pytest-benchmark writes them: one row per contender and step."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def load_results(path: Path) -> dict[str, Any]:
    """The JSON of ``pytest --benchmark-json``.

    Raises:
        ResultsError: when it cannot be read or is something else; the message says what to do.
    """
    how = "write one with pytest -m benchmark --benchmark-json=FILE"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}; {how}") from None
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON ({error}); {how}") from None
    if not isinstance(results, dict) or "benchmarks" not in results:
        raise ResultsError(f"{path} is no results file of pytest-benchmark; {how}")
    return results


def rows(results: dict[str, Any]) -> list[Row]:
    """The benchmarks of the PPO core in a results file; others are passed over."""
    found = []
    for entry in results["benchmarks"]:
        info, stats = entry["extra_info"], entry["stats"]
        if "contender" not in info or not stats:
            continue
        found.append(
            Row(
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
        )
    return found


def device_of(results: dict[str, Any]) -> str:
    """``cpu`` or ``cuda``: where the core was measured.

    Raises:
        ResultsError: when nothing of the core was measured.
    """
    for entry in results["benchmarks"]:
        if "contender" in entry["extra_info"]:
            return str(entry["extra_info"]["device"])
    raise ResultsError("the file holds no benchmark of the PPO core; run pytest -m benchmark")
