"""Results to draw: the committed records, and small made-up benchmarks and self-tests."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from precision_lib.record.codec import decode
from precision_lib.record.files import load_record
from precision_lib.record.record import Record
from precision_lib.record.self_test import SelfTest
from precision_lib.record.sharing import complete, resolve

ROOT = Path(__file__).parents[3]
REPORT = ROOT / "docs" / "records" / "cpu.json"
SWEEP = ROOT / "docs" / "records" / "sweep" / "sweep.json"


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def report() -> dict[str, Any]:
    """The committed record, a copy of its own for each caller; evidence stands in every cell."""
    found: dict[str, Any] = json.loads(_text(REPORT))
    cells = found["precision"]["cells"]
    resolve(cells)
    complete(cells)
    return found


def committed(name: str) -> dict[str, Any]:
    """Another of the committed records."""
    found: dict[str, Any] = json.loads(_text(ROOT / "docs" / "records" / f"{name}.json"))
    return found


@cache
def record() -> Record:
    """The same as it is read."""
    return load_record(REPORT)


def block() -> dict[str, Any]:
    """Its ``precision`` block."""
    found: dict[str, Any] = report()["precision"]
    return found


def sweep() -> dict[str, Any]:
    """The committed record of a sweep."""
    found: dict[str, Any] = json.loads(_text(SWEEP))
    return found


def benchmark(step: str, contender: str, seconds: float, error: float = 0.1) -> dict[str, Any]:
    """One entry of pytest-benchmark's file, as ``tests/benchmarks`` writes it."""
    info: dict[str, Any] = {
        "step": step,
        "shape": [64, 1024],
        "format": "fp32",
        "contender": contender,
    }
    info |= {"kind": "ours" if contender == "this suite" else "peer", "version": "1.0"}
    info |= {"peak_mib": 1.0, "input_mib": 1.0, "time_over_floor": 2.0, "error_over_limit": error}
    return {"extra_info": info, "stats": {"median": seconds, "iqr": seconds / 10}}


def benchmarks() -> dict[str, Any]:
    """A core, a peer that is twice as slow, and one that is twice as fast and wrong."""
    entries = [
        entry
        for step in ("gae, forward", "whiten, forward")
        for entry in (
            benchmark(step, "this suite", 1e-3),
            benchmark(step, "slow peer", 2e-3),
            benchmark(step, "wrong peer", 5e-4, error=1e4),
        )
    ]
    machine = {"python_version": "3.11.7", "torch": "2.13.0", "threads": 1}
    return {"benchmarks": entries, "machine_info": machine, "datetime": "2026-01-02T03:04:05"}


def fault(name: str, function: str = "gae", outcome: str = "caught", **by: Any) -> dict[str, Any]:
    """One planted fault; ``by`` is catcher to margin, "core" for the conformance tests."""
    tests = {"core": "test_values_are_within_their_bound[x]", "gate": "gate: H1 bf16_pure x"}
    caught = [
        {
            "by": tests.get(who, f"test_{who.lower()}_x.py::test_y"),
            "margin": margin,
            "unit": "times the limit",
        }
        for who, margin in by.items()
    ]
    return {
        "name": name,
        "function": function,
        "meaning": f"what {name} breaks",
        "source": "somewhere",
        "outcome": outcome,
        "caught": caught,
        "smallest_detectable": None,
    }


def self_test() -> dict[str, Any]:
    """A hundred and twenty faults caught, and two hundred clean runs."""
    names = [f"fault_{i}" for i in range(120)]
    faults = [fault(n, f"function_{i % 9}", core=10.0 ** (i % 7)) for i, n in enumerate(names)]
    clean: dict[str, Any] = {"runs": 200, "seeds": list(range(1, 201)), "last_seed": 200}
    clean |= {"false_alarms": 0, "comparisons": 12345, "worst_share_of_limit": 0.5}
    context = {"commit": {"sha": "0" * 40, "dirty": False}, "device": {"name": "a CPU"}, "seed": 0}
    return {"schema": 1, "context": context, "faults": faults, "clean_runs": clean}


def typed_self_test() -> SelfTest:
    """The same as it is read."""
    return decode(SelfTest, {k: v for k, v in self_test().items() if k != "schema"})


FILES = {
    "report.json": report,
    "sweep.json": sweep,
    "benchmarks.json": benchmarks,
    "self_test.json": self_test,
}


def write_results(directory: Path, *names: str, **contents: Any) -> Path:
    """Write the named files, all by default, into ``directory``; the directory.

    Args:
        contents: file name without its suffix to what it holds instead.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in names or FILES:
        content = contents.get(name.removesuffix(".json")) or FILES[name]()
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory
