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
PYTEST = (
    *(sys.executable, "-m", "pytest", "tests/forensics", "--quick", "-q"),
    *("-p", "no:cacheprovider", "-k", "not seed"),
)


def failed_tests(tmp_path: Path, *arguments: str) -> tuple[int, set[str]]:
    """Exit code and names (without parameters) of the tests that fail in a quick run of H1."""
    record = tmp_path / "report.json"
    done = subprocess.run(
        [*PYTEST, f"--json-report-file={record}", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert record.is_file(), done.stdout + done.stderr
    tests = json.loads(record.read_text())["tests"]
    assert len(tests) > 60, "the run compared next to nothing"
    failed = {t["nodeid"] for t in tests if t["outcome"] in ("failed", "error")}
    return done.returncode, {nodeid.split("::")[-1].split("[")[0] for nodeid in failed}


def test_the_clean_suite_is_green(tmp_path: Path) -> None:
    assert failed_tests(tmp_path) == (0, set())


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_planted_fault_turns_the_suite_red(name: str, tmp_path: Path) -> None:
    code, failed = failed_tests(tmp_path, "--plant-fault", name)
    assert code == 1
    block = load_record(tmp_path / "report.json")["precision"]
    assert block["planted_fault"] == name, "nobody may take this record for a measurement"
    assert FAULTS[name].caught_by in failed


def test_a_fault_is_taken_back() -> None:
    from precision_lib.ppo import masked

    original = masked.masked_mean
    with plant("bf16_running_sum") as fault:
        assert masked.masked_mean is fault.broken
    assert masked.masked_mean is original


def test_an_unknown_fault_is_named() -> None:
    with (
        pytest.raises(ValueError, match="unknown fault 'typo'; known: bf16_running_sum"),
        plant("typo"),
    ):
        pass


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_fault_says_what_where_and_by_whom(name: str) -> None:
    fault = FAULTS[name]
    assert fault.meaning
    assert fault.source
    assert fault.caught_by.startswith("test_")
