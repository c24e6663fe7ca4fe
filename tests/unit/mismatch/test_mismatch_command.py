"""``precision-forensics mismatch`` as a user and a script meet it."""

import json
from pathlib import Path

import numpy as np
import pytest

from precision_lib import cli
from tests.unit.mismatch.dump_files import columns, json_lines, npz, row_dictionaries


def test_precision_is_exit_code_0_and_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, record, page = (tmp_path / name for name in ("d.npz", "r.json", "r.md"))
    code = cli.main(["mismatch", str(npz(path)), f"--json={record}", f"--markdown={page}"])
    assert code == 0
    result = json.loads(record.read_text())
    assert result["verdict"] == "precision"
    assert {"evidence", "cost", "next"} <= set(result)
    assert 1 <= len(result["evidence"]) <= 5
    assert result["counters"]["tokens"] == 16 * 32 - 16
    assert "verdict: precision" in capsys.readouterr().out
    assert page.read_text().startswith("### Trainer against rollout: precision")


def test_a_bug_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifted = np.roll(columns()["trainer_logprobs"], -1, 1)
    assert cli.main(["mismatch", str(npz(tmp_path / "d.npz", trainer_logprobs=shifted))]) == 1
    assert "verdict: alignment (shift)" in capsys.readouterr().out


def test_too_little_is_exit_code_2(tmp_path: Path) -> None:
    rows = row_dictionaries(columns(rows=1))
    assert cli.main(["mismatch", str(json_lines(tmp_path / "d.jsonl", rows))]) == 2


def test_what_cannot_be_read_is_exit_code_4_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path / "d.npz", trainer_logprobs=np.full((16, 32), np.nan))
    for arguments, words in (
        ([str(path)], "column trainer_logprobs is NaN for 496 of 496 real tokens"),
        ([str(tmp_path / "none.npz")], "No such file"),
        ([str(path)] * 3, "give one dump, or two"),
        ([str(path), "--claim", "dtype=bf16"], "--claim dtype=bf16: give NAME=VALUE with one of"),
        ([str(path), "--limit", "0"], "--limit 0"),
    ):
        assert cli.main(["mismatch", *arguments]) == 4
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_claims_of_the_command_line_replace_those_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same noise in bf16 is no fp32 noise."""
    path = str(npz(tmp_path / "d.npz"))
    claim = ["--claim", "rollout_dtype=fp32", "trainer_dtype=fp32"]
    assert cli.main(["mismatch", path, *claim]) == 1
    assert "verdict: model" in capsys.readouterr().out


def test_the_users_limit_is_an_exit_code(tmp_path: Path) -> None:
    path = str(npz(tmp_path / "d.npz"))
    assert cli.main(["mismatch", path, "--limit", "0.001"]) == 1
    assert cli.main(["mismatch", path, "--limit", "1"]) == 0


def test_the_page_has_the_verdict_and_its_plots_and_fetches_nothing(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    assert cli.main(["mismatch", str(npz(tmp_path / "d.npz")), "--page", str(page)]) == 0
    text = page.read_text()
    assert "<h1>Trainer against rollout: precision</h1>" in text
    assert 'src="data:image/' in text
    assert "http" not in text.replace("http://www.w3.org", "")
