"""docs/mismatch.md shows the committed record, and its examples run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from precision_lib.mismatch.judgement import VERDICTS
from precision_lib.mismatch.layouts import ALIASES
from precision_lib.mismatch.schema import COLUMNS
from tools.mismatch.calibration import found_share, main, smallest_size
from tools.mismatch.faults import FAULTS
from tools.mismatch.tables import calibration_markdown

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/mismatch.md").read_text()
RECORD = json.loads((ROOT / "docs/records/mismatch_calibration.json").read_text())


def test_the_page_shows_the_record() -> None:
    assert calibration_markdown(RECORD) in PAGE
    assert RECORD["runs"] >= 1000
    assert len(RECORD["false_alarms"]) <= RECORD["runs"] / 1000
    assert [row["fault"] for row in RECORD["power"]] == [fault.name for fault in FAULTS]


def test_the_page_names_every_verdict_column_and_foreign_name_it_shows() -> None:
    for word in (*VERDICTS, *COLUMNS):
        assert f"`{word}`" in PAGE, word
    known = {name for names in ALIASES.values() for name in names} | set(COLUMNS)
    for listed in re.findall(r"^names = \((.*)\)$", PAGE, flags=re.MULTILINE):
        assert set(re.findall(r'"(\w+)"', listed)) <= known


def test_the_example_of_save_dump_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    code = re.search(r"(from precision_lib.mismatch.saving.*?\n\)\n)", PAGE, flags=re.DOTALL)
    assert code is not None
    numbers = torch.full((2, 3), -1.0)
    names = ("tokens", "mask", "engine_logprobs", "old_logprobs", "entropy")
    exec(code.group(1), {"step": 3, **dict.fromkeys(names, numbers)})
    assert np.load(tmp_path / "dumps/step_3.npz")["rollout_logprobs"].shape == (2, 3)


def test_a_size_that_the_record_calls_found_is_found() -> None:
    row = next(row for row in RECORD["power"] if row["fault"] == "temperature of one side")
    [fault] = [f for f in FAULTS if f.name == row["fault"]]
    share, verdicts = found_share(fault, row["found_from"]["bf16, 1024"], "bf16", 1024, 10)
    assert share >= 0.8, verdicts
    assert smallest_size(fault, "bf16", 1024, 5) is not None


def test_the_command_fills_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.mismatch.calibration.calibrate", lambda runs, seeds: RECORD)
    page, record = tmp_path / "p.md", tmp_path / "r.json"
    page.write_text("<!-- mismatch-calibrate: begin -->\n<!-- mismatch-calibrate: end -->\n")
    assert main(["calibrate", "--into", str(page), "--record", str(record)]) == 0
    assert calibration_markdown(RECORD) in page.read_text()
    assert json.loads(record.read_text()) == RECORD
    assert "called a bug" in capsys.readouterr().out
