"""docs/gate.md and the README show the committed records of the gate, unchanged.

The hazard. A table that was made once goes on saying "caught" after the record under it changed.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

from precision_lib.compare.baseline import load_baseline
from precision_lib.exit_codes import OK
from precision_lib.faults import FAULTS
from precision_lib.record.changes import Change, Gate
from precision_lib.record.codec import decode
from precision_lib.record.files import load_self_test
from precision_lib.record.record import nothing_measured
from precision_lib.reporting.gate import gate_lines
from tools import tables
from tools.gate_tables import self_test_tables

ROOT = Path(__file__).parents[3]
RECORD = json.loads((ROOT / "docs" / "records" / "self_test.json").read_text(encoding="utf-8"))


def test_the_table_is_the_records() -> None:
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    inside = text.split("<!-- self-test: begin -->")[1].split("<!-- self-test: end -->")[0]
    assert (
        inside.strip()
        == self_test_tables(load_self_test(ROOT / "docs" / "records" / "self_test.json")).strip()
    )


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
    text = words("README.md")
    caught = sum(fault["outcome"] == "caught" for fault in RECORD["faults"])
    clean = RECORD["clean_runs"]
    assert clean["false_alarms"] == clean["against_the_run_before"]["false_alarms"] == 0
    assert f"every one of {caught} planted faults is caught" in text
    assert f"{len(RECORD['faults']) - caught} refactorings pass" in text
    assert f"{clean['runs']} clean runs with other seeds gave no false alarm" in text


def test_the_regression_in_the_readme_is_the_records() -> None:
    """A run with a planted fault, against the committed baseline."""
    text = (ROOT / "docs" / "records" / "k3_as_textbook.json").read_text(encoding="utf-8")
    block = json.loads(text)["precision"]
    changes = [{k: v for k, v in c.items() if k != "message"} for c in block["regressions"]]
    better = [{k: v for k, v in c.items() if k != "message"} for c in block["gate"]["improvements"]]
    record = replace(
        nothing_measured(),
        regressions=tuple(decode(Change, change) for change in changes),
        gate=decode(Gate, block["gate"] | {"improvements": better}),
    )
    printed = [line for line, _ in gate_lines(record)][:3]
    assert printed[0].startswith("gate: regression, ")
    assert all(line.startswith("REGRESSION ") for line in printed[1:])
    assert "\n".join(printed) in (ROOT / "README.md").read_text(encoding="utf-8")
    [core] = [change for change in block["regressions"] if change["where"] == "core"]
    baseline = load_baseline(ROOT / block["gate"]["baseline"])
    assert baseline.conformance is not None
    counts = baseline.conformance.functions[core["component"]]
    assert core["before"] == counts.worst_over_limit


def words(name: str) -> str:
    """A document in one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_what_the_words_say_that_the_gate_sees_follows_from_the_table() -> None:
    """As far as the digits of the table go."""
    said = re.search(
        r"H1 noise that is ([\d.]+) times as large. It finds H4's error per token from ([\d.]+) "
        r"times on, and H2's and H3's advantage errors from ([\d.]+) and ([\d.]+) times on",
        words("docs/gate.md"),
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
