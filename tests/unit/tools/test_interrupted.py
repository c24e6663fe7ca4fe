"""Two records of one job are the same but for times and the run; what else differs is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from precision_lib.forensics.evidence import H4Evidence
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.matrix import get_configuration
from precision_lib.record.recorder import Recorder
from tools.interrupted import differing

METRIC = Metric(0.1, 0.05, 0.3, 7, "nats")


def written(path: Path, metric: Metric | None = METRIC, outcome: str = "passed") -> Path:
    recorder = Recorder(path / "report.json", [get_configuration("bf16_pure")])
    if metric is not None:
        recorder.add_cell(
            Cell("H4", "bf16_pure", "healthy", {"accum_err_final": metric}, H4Evidence())
        )
    test = {"nodeid": "a", "outcome": outcome, "call": {"duration": len(path.name)}}
    return recorder.write({"created": len(path.name), "tests": [test]})


def test_times_and_the_run_do_not_count(tmp_path: Path) -> None:
    assert differing(written(tmp_path / "one"), written(tmp_path / "another")) == []


def test_a_last_bit_and_an_outcome_are_named(tmp_path: Path) -> None:
    first = written(tmp_path / "one")
    moved = written(tmp_path / "two", replace(METRIC, low=0.05 + 2**-57))
    name = "cells.H4 bf16_pure.metrics.accum_err_final.low"
    assert differing(first, moved) == [f"{name}: 0.05 -> 0.05000000000000001"]
    assert differing(first, written(tmp_path / "three", outcome="failed")) == [
        'tests.a: "passed" -> "failed"'
    ]


def test_records_without_a_measurement_are_not_the_same(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        differing(written(tmp_path / "one", None), written(tmp_path / "two", None))
