"""docs/gate.md shows the committed self-test, whole and unchanged.

The hazard. A table that was made once goes on saying "caught" after the record under it changed.
"""

import json
from pathlib import Path

from precision_lib.faults import FAULTS
from precision_lib.reporting.self_test import self_test_tables

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "docs" / "records" / "self_test.json").read_text(encoding="utf-8"))


def test_the_table_is_the_records() -> None:
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    inside = text.split("<!-- self-test: begin -->")[1].split("<!-- self-test: end -->")[0]
    assert inside.strip() == self_test_tables(RECORD).strip()


def test_the_record_is_of_every_fault_and_a_clean_commit() -> None:
    assert {fault["name"] for fault in RECORD["faults"]} == set(FAULTS)
    assert RECORD["context"]["commit"]["dirty"] is False
    harmless = {fault["name"] for fault in RECORD["faults"] if fault["outcome"] != "caught"}
    assert harmless == {name for name, fault in FAULTS.items() if fault.harmless}


def test_the_readme_says_what_the_record_says() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    caught = sum(fault["outcome"] == "caught" for fault in RECORD["faults"])
    clean = RECORD["clean_runs"]
    assert clean["false_alarms"] == clean["against_the_run_before"]["false_alarms"] == 0
    assert f"every one of {caught} planted faults is caught" in text
    assert f"{clean['runs']} clean runs with other seeds gave no false alarm" in text
