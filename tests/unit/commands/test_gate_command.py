"""``gate`` and ``compare``: exit codes, killed runs, and baselines that are not written.

The hazard. A script looks at the exit code and at nothing else; whatever is no verdict must not
look like one.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from precision_lib.cli import main
from precision_lib.compare import baseline as baselines
from precision_lib.compare.baseline import load_baseline
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.record.recorder import unfinished_run
from tests.unit import small_blocks as small
from tests.unit.commands.gate_files import Files
from tests.unit.small_blocks import Block, metric, moved, whole

NODE = "tests/forensics/test_h1_kl_collapse.py::test_cell_has_a_verdict[bf16_pure]"
#: Every hypothesis in two configurations.
CELLS = 2 * len(HYPOTHESES)
GATE_NODE = "tests/forensics/test_regressions.py::test_cell_is_no_worse_than_the_baseline[H1-x]"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


WORSE = moved(whole(), "H1", "log_ratio_nsr", metric(5.0, 0.1))
FOREIGN = whole(context={"device": {"class": "sm90", "name": "a GPU"}})


@pytest.mark.parametrize(
    ("block", "code", "said"),
    [
        (whole(), 0, "gate: no regression"),
        (moved(whole(), "H1", "log_ratio_nsr", metric(0.01)), 0, "improved H1 bf16_pure"),
        (WORSE, 1, "REGRESSION H1 bf16_pure: log_ratio_nsr 0.5 -> 5 units, limit "),
        (FOREIGN, 2, "inconclusive: foreign device class"),
        (whole(planted_fault="k3_in_bf16"), 2, "inconclusive: k3_in_bf16 was planted"),
        (small.block(context={"device": small.DEVICE}), 2, "gate: inconclusive, 0 comparisons"),
    ],
    ids=["same", "better", "worse", "foreign", "planted", "nothing"],
)
def test_the_exit_code_is_the_verdict(
    block: Block, code: int, said: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.put(block)
    assert files.gate() == code
    assert said in capsys.readouterr().out


def test_a_planted_fault_that_makes_it_worse_is_a_regression(files: Files) -> None:
    files.put(WORSE | {"planted_fault": "k3_in_bf16"})
    assert files.gate() == 1


def test_failing_tests_are_not_green(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.put(whole(), NODE, "tests/forensics/test_h2.py::test_b")
    assert files.gate() == 2
    said = f"inconclusive: the measurement cannot be trusted: {NODE} and 1 more failed"
    assert said in capsys.readouterr().out


def test_tests_that_failed_for_the_regression_itself_are_no_obstacle(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the gate's own tests of an earlier baseline."""
    files.put(WORSE, NODE)
    assert files.gate() == 1
    assert "cannot be trusted" not in capsys.readouterr().out
    files.put(whole(), GATE_NODE)
    assert files.gate() == 0


def test_a_killed_run_without_a_record_is_incomplete(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.report.unlink()
    files.begin("killed")
    for _ in range(3):
        files.finish_cell("killed")
    assert files.gate(f"--markdown={files.markdown}") == 2
    out = capsys.readouterr().out
    assert "inconclusive: incomplete: the last run that was to write report.json was killed" in out
    assert f"after 3 of {CELLS} cells; what it measured stands in {files.directory}" in out
    assert files.markdown.read_text().startswith("### Precision: inconclusive\n")


def test_a_killed_run_is_not_hidden_by_the_record_of_an_earlier_one(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.begin("a-run")
    for _ in range(CELLS):
        files.finish_cell("a-run")
    assert files.gate() == 0, "this record is of the run that began last"
    files.begin("killed")
    assert files.gate() == 2
    assert f"killed after 0 of {CELLS} cells" in capsys.readouterr().out
    assert (
        main(["gate", str(files.report), "--update-baseline", f"--baseline={files.baseline}"]) == 4
    )


def test_a_run_for_another_file_says_nothing_about_this_one(files: Files) -> None:
    files.begin("planted", record="planted_fault.json")
    assert unfinished_run(files.report) is None
    assert files.gate() == 0


def test_half_a_line_of_a_kill_is_passed_over(files: Files) -> None:
    files.begin("killed")
    with (files.directory / "cells.jsonl").open("a") as file:
        file.write('{"run": "killed", "hypothesis": "H1", "confi')
    sentence = unfinished_run(files.report)
    assert sentence is not None
    assert f"killed after 0 of {CELLS}" in sentence


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.report.unlink(), "report.json does not exist"),
        (lambda f: f.report.write_text(f.report.read_text()[:-99]), "is truncated or not strict"),
        (lambda f: f.report.write_text("{}"), "it has no 'precision' block"),
        (lambda f: f.report.write_bytes(b"\xff"), "cannot be read"),
        (lambda f: f.baseline.unlink(), "cpu.json does not exist; pytest with --update"),
        (lambda f: f.baseline.write_text(f.baseline.read_text()[:-99]), "cannot be read"),
        (lambda f: f.baseline.write_text("{}"), "is not a baseline"),
        (lambda f: f.markdown.mkdir(), "summary.md"),
    ],
)
def test_files_that_do_not_fit_are_a_usage_error_in_one_line(
    spoil: Any, said: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(files)
    assert files.gate(f"--markdown={files.markdown}") == 4
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("precision-forensics: ")
    assert said in line


def test_what_was_not_said_is_a_usage_error(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(files.report)]) == 4
    assert "give --baseline FILE, --update-baseline or --compare EARLIER" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["gate"])
    assert left.value.code == 4


def test_a_metric_without_a_direction_is_an_internal_error(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.put(moved(whole(), "H1", "brand_new", metric(1.0)))
    assert files.gate() == 3
    assert "H1 brand_new has no direction" in capsys.readouterr().err


def test_the_markdown_holds_the_verdict(files: Files) -> None:
    files.put(WORSE)
    assert files.gate(f"--markdown={files.directory / 'new' / 'summary.md'}") == 1
    text = (files.directory / "new" / "summary.md").read_text()
    assert text.startswith("### Precision: regression\n")
    assert f"comparisons with `{files.baseline}`" in text


def test_update_baseline_writes_what_the_gate_then_passes(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.put(WORSE)
    assert files.gate() == 1
    assert files.gate("--update-baseline") == 0
    assert f"baseline: {files.baseline}" in capsys.readouterr().out
    assert load_baseline(files.baseline) == small.baseline(small.known(WORSE))
    assert files.gate() == 0


def test_update_baseline_goes_to_the_device_class_by_default(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files.directory)
    files.put(FOREIGN)
    assert main(["gate", str(files.report), "--update-baseline"]) == 0
    written = load_baseline(files.directory / baselines.DIRECTORY / "sm90.json")
    assert written == small.baseline(small.known(FOREIGN))


@pytest.mark.parametrize(
    ("block", "failed", "named", "said"),
    [
        (whole(planted_fault="k3_in_bf16"), (), True, "k3_in_bf16 was planted"),
        (whole(expected=[("H1", "mine")]), (), True, "the run is not complete"),
        (small.block(), (), True, "the run measured nothing"),
        (whole(), (NODE,), True, "failed: make no baseline of it"),
        (
            whole(context={"budget": "quick"}),
            (),
            False,
            "of a sweep needs --baseline FILE",
        ),
        (small.block(conformance=small.core()), (), False, "of a sweep needs --baseline FILE"),
    ],
    ids=["planted", "half", "nothing", "failed", "quick", "target"],
)
def test_update_baseline_refuses_what_is_no_measurement(
    block: Block,
    failed: tuple[str, ...],
    named: bool,
    said: str,
    files: Files,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files.directory)
    files.put(block, *failed)
    before = files.baseline.read_bytes()
    options = [f"--baseline={files.baseline}"] if named else []
    assert main(["gate", str(files.report), "--update-baseline", *options]) == 4
    assert said in capsys.readouterr().err
    assert files.baseline.read_bytes() == before
    assert not (files.directory / baselines.DIRECTORY).exists()


@pytest.mark.parametrize("no_color", [True, False])
def test_colour_is_for_terminals_that_want_it(
    no_color: bool,
    files: Files,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    files.put(WORSE)
    assert files.gate() == 1
    out = capsys.readouterr().out
    assert ("\033[31mREGRESSION " in out) is not no_color
    assert ("\033" in out) is not no_color


def test_a_record_is_left_as_it_was(files: Files) -> None:
    """The verdict is printed and written where it was asked for, and not into the record."""
    before = json.loads(files.report.read_text())
    assert files.gate(f"--markdown={files.markdown}") == 0
    assert json.loads(files.report.read_text()) == before
