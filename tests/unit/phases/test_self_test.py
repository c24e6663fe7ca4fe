"""The self-test of the gate, itself tested: it can say missed, and it can say false alarm.

The hazard. A self-test that prints "caught" for everything is the one check that nobody would miss.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli, faults
from precision_lib.exit_codes import OK, REGRESSION, USAGE
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.jsonio import write_json
from precision_lib.phases import clean_runs
from precision_lib.phases.self_test import QUICK, plant_faults
from precision_lib.record.changes import Change
from precision_lib.record.codec import encode
from precision_lib.record.self_test import CleanRuns, FaultOutcome
from precision_lib.reporting.self_test import caught_by, self_test_lines


def outcome(name: str, tmp_path: Path) -> FaultOutcome:
    return plant_faults([name], tmp_path)[0]


def test_a_fault_is_caught_by_its_check_with_a_margin(tmp_path: Path) -> None:
    found = outcome("group_one_pass_variance", tmp_path)
    assert found.outcome == "caught"
    [by] = found.caught
    assert by.by == faults.FAULTS["group_one_pass_variance"].caught_by
    assert by.margin is not None
    assert by.margin > 1
    assert f"{by.by}, {by.margin:.3g} times the limit" == caught_by(found)


def test_a_fault_of_a_property_has_no_margin(tmp_path: Path) -> None:
    found = outcome("group_advantages_left_in_input_dtype", tmp_path)
    assert [by.margin for by in found.caught] == [None]
    assert "times" not in caught_by(found)


def test_a_fault_that_nobody_catches_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refactoring that says of itself that it is a fault."""
    harmless = faults.FAULTS["groups_from_the_back"]
    claimed = replace(harmless, harmless=False, measured_in="", caught_by=_check("group_epsilon"))
    monkeypatch.setitem(faults.FAULTS, harmless.name, claimed)
    found = outcome(harmless.name, tmp_path)
    assert (found.outcome, found.caught) == ("missed", ())


def test_a_fault_that_says_it_is_harmless_is_a_false_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = faults.FAULTS["group_epsilon"]
    monkeypatch.setitem(faults.FAULTS, fault.name, replace(fault, caught_by="", harmless=True))
    assert outcome(fault.name, tmp_path).outcome == "false alarm"


def _check(name: str) -> str:
    return faults.FAULTS[name].caught_by


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({"before": 1.0, "after": 3.0, "limit": 2.0}, 2.0),
        ({"before": 1.0, "after": 0.5, "limit": 0.9}, 5.0),
        ({"before": 0.0, "after": 0.1, "limit": 0.0}, float("inf")),
        ({"before": "fp32", "after": "bf16", "limit": "fp32"}, float("inf")),
    ],
)
def test_margin_is_the_worsening_over_the_allowed_one(change: dict[str, Any], times: float) -> None:
    made = Change("H1", "bf16_pure", "kl", "x", **change, unit="", reason="")
    assert made.times_the_limit == pytest.approx(times)


def test_command_writes_a_record_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["self-test", "--faults", "group_epsilon", "--output_dir", str(tmp_path)]
    assert cli.main(given) == OK
    assert "1 faults: 1 caught, 0 missed" in capsys.readouterr().out
    assert (tmp_path / "self_test.json").is_file()


def test_command_is_red_when_a_fault_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = faults.FAULTS["group_epsilon"]
    monkeypatch.setitem(faults.FAULTS, fault.name, replace(fault, caught_by="", harmless=True))
    given = ["self-test", "--faults", "group_epsilon", "--output_dir", str(tmp_path)]
    assert cli.main(given) == REGRESSION


@pytest.mark.parametrize("given", [["--faults", "typo"], ["--clean_runs", "-1"], ["--jobs", "0"]])
def test_usage_errors(given: list[str], tmp_path: Path) -> None:
    assert cli.main(["self-test", *given, "--output_dir", str(tmp_path)]) == USAGE


def test_any_directory_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["self-test", "--faults", "group_epsilon"]) == OK
    assert (tmp_path / "results" / "self_test.json").is_file()


def test_a_first_look_plants_one_fault_of_each_kind() -> None:
    core, pipeline, harmless = (faults.FAULTS[name] for name in QUICK)
    assert (bool(core.caught_by), core.harmless) == (True, False)
    assert (pipeline.caught_by, bool(pipeline.caught_in_pipeline)) == ("", True)
    assert harmless.harmless


def clean(directory: Path, nsr: list[float]) -> None:
    """Records of runs with one metric each, as ``clean_runs.measure`` leaves them."""
    for seed, value in enumerate(nsr):
        metric = {"value": value, "low": value * 0.9, "high": value * 1.1, "n": 100, "unit": "x"}
        cell = {
            "hypothesis": "H1",
            "configuration": "bf16_pure",
            "verdict": "impaired",
            "metrics": {"log_ratio_nsr": metric | {"clusters": 8}},
            "evidence": {},
        }
        block = {
            "schema": 2,
            "run": str(seed),
            "complete": True,
            "context": {"device": {"class": "cpu"}, "seed": seed},
            "matrix": {"bf16_pure": {"policy": "bf16"}},
            "thresholds": encode(DECISIONS),
            "expected": [["H1", "bf16_pure"]],
            "cells": [cell],
            "hypotheses": [],
        }
        write_json(clean_runs.record_path(directory, seed), {"precision": block})


def test_clean_runs_without_an_alarm(tmp_path: Path) -> None:
    clean(tmp_path, [1.0, 1.05, 0.97])
    found = clean_runs.false_alarms(range(3), tmp_path)
    assert (found.runs, found.comparisons, found.false_alarms) == (2, 2, 0)
    assert 0 < found.worst_share_of_limit < 1
    assert found.worst_metric == "H1 bf16_pure log_ratio_nsr"
    assert "2 clean runs, seeds 1 to 2, against seed 0: 0 false alarms" in _text(found)


def test_clean_runs_with_an_alarm_say_which(tmp_path: Path) -> None:
    clean(tmp_path, [1.0, 5.0, 1.0])
    found = clean_runs.false_alarms(range(3), tmp_path)
    assert found.false_alarms == 1
    assert found.against_the_run_before is not None
    assert found.against_the_run_before.false_alarms == 1
    assert "log_ratio_nsr 1 -> 5" in found.alarms[0]
    assert "log_ratio_nsr 1 -> 5" in _text(found)


def test_a_single_run_compares_nothing(tmp_path: Path) -> None:
    clean(tmp_path, [1.0])
    with pytest.raises((ValueError, IndexError)):
        clean_runs.false_alarms(range(1), tmp_path)


def test_runs_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    clean(tmp_path, [1.0, 1.0])
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    clean_runs.measure(range(2), tmp_path, jobs=1)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == before


def _text(found: CleanRuns) -> str:
    return "\n".join(text for text, _ in self_test_lines([], found))
