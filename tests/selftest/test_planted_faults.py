"""Tests of the tests: a fault of the pipeline turns it red, a refactoring does not.

A run per fault, each in a process of its own, takes minutes for all of them: here one for each
file of the pipeline's tests, one of them with the gate, its clean run and a refactoring. All run in
``precision-forensics self-test``, whose committed record ``test_gate_docs.py`` reads. The faults of
the core alone are in ``test_wrong_cores.py``; one fault is planted in the unit tests.
"""

from pathlib import Path

import pytest

from precision_lib.faults import FAULTS
from precision_lib.phases.self_test import file_of, plant_faults, planted
from tests.unit.small_blocks import read

#: Caught without a baseline, by a test of its file.
BY_A_TEST = ["log_of_softmax", "dropout_left_on", "states_one_late", "rope_table_in_format"]
BY_A_TEST += ["step_truncated"]
#: Through the whole self-test, in the file that is the quickest to measure.
BY_THE_GATE, REFACTORING = "scores_through_bf16", "groups_from_the_back"


def test_every_file_of_the_pipelines_tests_is_shown_a_fault() -> None:
    files = {file_of(fault) for fault in FAULTS.values() if fault.caught_in_pipeline}
    assert {file_of(FAULTS[name]) for name in [*BY_A_TEST, BY_THE_GATE]} == files


@pytest.mark.parametrize("name", BY_A_TEST)
def test_a_planted_fault_turns_its_file_red(name: str, tmp_path: Path) -> None:
    caught, _ = planted(FAULTS[name], None, tmp_path)
    assert FAULTS[name].caught_in_pipeline in [by.by for by in caught]
    # Nobody may take such a record for a measurement.
    block = read(tmp_path / "planted" / f"{name}.json")["precision"]
    assert block["planted_fault"] == name


def test_the_self_test_catches_a_fault_and_lets_a_refactoring_pass(tmp_path: Path) -> None:
    fault, refactoring = plant_faults([BY_THE_GATE, REFACTORING], tmp_path)
    assert fault.outcome == "caught"
    caught = [by.by for by in fault.caught]
    assert FAULTS[BY_THE_GATE].caught_in_pipeline in caught
    assert any(by.startswith("gate: ") for by in caught)
    assert refactoring.caught == ()
    assert refactoring.outcome == "below the noise floor"
