"""Tests of the tests: a fault of the pipeline turns it red, a refactoring does not.

The faults of the core alone are in ``test_wrong_cores.py``. A run per fault, each in a process of
its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from precision_lib.faults import FAULTS, plant
from precision_lib.phases.self_test import plant_faults
from precision_lib.records.record import load_record

ROOT = Path(__file__).parents[2]
IN_THE_PIPELINE = [name for name, fault in FAULTS.items() if fault.caught_in_pipeline]
#: The quickest to measure; the command runs all twelve.
REFACTORINGS = ["groups_from_the_back"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each, from one self-test; the clean runs before it have to be green."""
    directory = tmp_path_factory.mktemp("self_test")
    outcomes = plant_faults([*IN_THE_PIPELINE, *REFACTORINGS], directory)
    for name in IN_THE_PIPELINE:  # nobody may take such a record for a measurement
        block = load_record(directory / "planted" / f"{name}.json")["precision"]
        assert block["planted_fault"] == name
    return {outcome["name"]: outcome for outcome in outcomes}


@pytest.mark.parametrize("name", IN_THE_PIPELINE)
def test_a_planted_fault_turns_the_suite_red(name: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[name]["outcome"] == "caught"
    assert FAULTS[name].caught_in_pipeline in [by["by"] for by in found[name]["caught"]]


@pytest.mark.parametrize("name", REFACTORINGS)
def test_a_refactoring_leaves_the_suite_green(name: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[name]["caught"] == []
    assert found[name]["outcome"] == "below the noise floor"


def test_a_fault_of_the_core_turns_its_own_conformance_check_red(tmp_path: Path) -> None:
    fault = FAULTS["k3_as_textbook"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            f"tests/forensics/test_conformance.py::{fault.caught_by}",
            *("--plant-fault", fault.name, f"--json-report-file={tmp_path / 'report.json'}"),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED tests/forensics/test_conformance.py::{fault.caught_by}" in done.stdout


def test_an_unknown_fault_is_named() -> None:
    with (
        pytest.raises(ValueError, match="unknown fault 'typo'; known: advantage_with"),
        plant("typo"),
    ):
        pass
