"""docs/gate.md shows the committed self-test, whole and unchanged.

The hazard. A table that was made once goes on saying "caught" after the record under it changed.
"""

import json
import re
from pathlib import Path

from precision_lib.exit_codes import OK
from precision_lib.faults import FAULTS
from tools import tables
from tools.gate_tables import self_test_tables

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "docs" / "records" / "self_test.json").read_text(encoding="utf-8"))


def test_the_table_is_the_records() -> None:
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    inside = text.split("<!-- self-test: begin -->")[1].split("<!-- self-test: end -->")[0]
    assert inside.strip() == self_test_tables(RECORD).strip()


def test_the_tool_writes_what_stands_there(tmp_path: Path) -> None:
    page, copy = ROOT / "docs" / "gate.md", tmp_path / "gate.md"
    copy.write_bytes(page.read_bytes().replace(b"faults caught", b"mistakes"))
    record = str(ROOT / "docs" / "records" / "self_test.json")
    assert tables.main(["self-test", record, "--into", str(copy)]) == OK
    assert copy.read_bytes() == page.read_bytes()


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


def test_what_the_readme_says_that_the_gate_sees_follows_from_the_table() -> None:
    """As far as the digits of the table go."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = re.search(
        r"H1 noise that is ([\d.]+) times as large, H4's error per token from ([\d.]+) times on, "
        r"H2's and H3's advantage errors from ([\d.]+) and ([\d.]+) times on",
        readme,
    )
    assert said is not None
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    metrics = (
        "H1 `log_ratio_nsr`",
        "H4 `log_ratio_rms_error`",
        "H2 `batch_advantage_rms_error`",
        "H3 `advantage_rms_error`",
    )
    for metric, times in zip(metrics, said.groups(), strict=True):
        row = re.search(rf"\| {metric} \| bf16_pure \| (\S+) \| \S+ \| (\S+) \|", text)
        assert row is not None, metric
        (now, slack), (found, more) = (
            (float(figure), half_a_digit(figure)) for figure in row.groups()
        )
        lowest, highest = (found - more) / (now + slack), (found + more) / (now - slack)
        rounded = half_a_digit(times)
        assert lowest - rounded <= float(times) <= highest + rounded, metric


def half_a_digit(figure: str) -> float:
    """How far a printed decimal may be from the number behind it."""
    return 0.5 * 10.0 ** -len(figure.partition(".")[2])
