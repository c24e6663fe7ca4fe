"""Tests of the tests: each planted fault turns the forensics suite red, by the test that should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from precision_lib.faults import FAULTS, plant
from precision_lib.records.record import load_record

ROOT = Path(__file__).parents[2]
FORENSICS = Path("tests/forensics")
IN_THE_PIPELINE = [name for name, fault in FAULTS.items() if fault.caught_in_pipeline]
FILES = sorted({FAULTS[name].caught_in_pipeline.split("::")[0] for name in IN_THE_PIPELINE})


def failed_tests(tmp_path: Path, file: str, *arguments: str) -> tuple[int, set[str]]:
    """Exit code and names (without parameters) of the tests of a file that fail in a quick run."""
    record = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(FORENSICS / file), "--quick", "-q"),
            *("-p", "no:cacheprovider", "-k", "not seed"),
            *(f"--json-report-file={record}", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert record.is_file(), done.stdout + done.stderr
    tests = json.loads(record.read_text())["tests"]
    assert len(tests) > 10, "the run compared next to nothing"
    failed = {t["nodeid"] for t in tests if t["outcome"] in ("failed", "error")}
    return done.returncode, {nodeid.split("::")[-1].split("[")[0] for nodeid in failed}


@pytest.mark.parametrize("file", FILES)
def test_the_clean_suite_is_green(file: str, tmp_path: Path) -> None:
    assert failed_tests(tmp_path, file) == (0, set())


@pytest.mark.parametrize("name", IN_THE_PIPELINE)
def test_a_planted_fault_turns_the_suite_red(name: str, tmp_path: Path) -> None:
    file, test = FAULTS[name].caught_in_pipeline.split("::")
    code, failed = failed_tests(tmp_path, file, "--plant-fault", name)
    assert code == 1
    block = load_record(tmp_path / "report.json")["precision"]
    assert block["planted_fault"] == name, "nobody may take this record for a measurement"
    assert test in failed


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
