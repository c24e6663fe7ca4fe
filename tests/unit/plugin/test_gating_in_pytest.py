"""--baseline, --update-baseline and --markdown as a user meets them, in runs of pytest.

The hazard. CI looks at pytest's exit code. A gate whose functions are all right is no gate when the
wiring asks it too early, or when a skipped test lets a run end with 0.

Eight conformance checks of ``whiten`` on constant input stand for the main job, for seconds.
"""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from precision_lib.forensics.evidence import H1Evidence
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.plugin.keeping import keeper
from precision_lib.record.recorder import Recorder
from tests.unit.small_blocks import read
from tests.unit.suite_runs import ROOT, Done, run_checkout, run_suite

FORENSICS = ("tests/forensics", "-k", "whiten and constant or no_worse and whiten")
CONFORMANCE = ("tests/forensics/test_conformance.py", "-k", "whiten and constant")
FAULT = "epsilon_instead_of_a_guard"


def outputs_in(directory: Path) -> list[str]:
    """Options that put record, JUnit file and Markdown into the directory."""
    outputs = {"json-report-file": "report.json", "junit-xml": "junit.xml", "markdown": "pr.md"}
    return [f"--{name}={directory / file}" for name, file in outputs.items()]


def run_in(directory: Path, *arguments: str) -> Done:
    """The suite, with its outputs in the directory."""
    return run_suite(*outputs_in(directory), *arguments)


def properties(directory: Path, test: str) -> list[dict[str, str]]:
    """Properties of each test case of a name."""
    cases = ElementTree.parse(directory / "junit.xml").iter("testcase")
    return [
        {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        for case in cases
        if case.attrib["name"].startswith(test)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """The run that writes the baseline, and where."""
    directory = tmp_path_factory.mktemp("made")
    file = directory / "baseline.json"
    return run_in(directory, *CONFORMANCE, "--update-baseline", f"--baseline={file}"), file


@pytest.fixture(scope="module")
def baseline(made: tuple[Done, Path]) -> Path:
    return made[1]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, baseline: Path) -> tuple[Done, Path]:
    """The same checks of a core with a planted fault, against that baseline."""
    directory = tmp_path_factory.mktemp("broken")
    fault, file = f"--plant-fault={FAULT}", f"--baseline={baseline}"
    return run_in(directory, *FORENSICS, fault, file), directory


def test_update_baseline_writes_one_and_says_where(made: tuple[Done, Path]) -> None:
    done, file = made
    assert done.returncode == 0, done.stdout
    assert f"baseline: {file}" in done.stdout
    counts = read(file)["conformance"]["functions"]["whiten"]
    assert (counts["tests"], counts["failed"]) == (8, [])
    assert counts["compared"] > 0
    assert "gate:" not in done.stdout, "there was nothing to compare with"


def test_the_figures_of_every_check_are_in_the_junit_file(made: tuple[Done, Path]) -> None:
    found = properties(made[1].parent, "test_")
    assert len(found) == 8
    for figures in found:
        assert int(figures["compared"]) > 0
        assert float(figures["worst_over_limit"]) <= 1


def floor(value: float) -> H1Evidence:
    return H1Evidence(golden_floor=Metric(value, value, value, 100, "x"))


def test_the_figures_of_every_cell_are_kept_for_the_junit_file(tmp_path: Path) -> None:
    """Without a model: what the tests of the main job do with a cell that they have measured."""
    recorder, found = Recorder(tmp_path / "report.json", ()), dict[str, object]()
    metrics = {"log_ratio_nsr": Metric(0.51234, 0.4, 0.6, 100, "RMS error / RMS signal")}
    keep = keeper(recorder, found.__setitem__)
    keep(Cell("H1", "bf16_pure", "impaired", metrics, floor(0.01)))
    assert [c.configuration for c in recorder.cells.values()] == ["bf16_pure"]
    assert found == {
        "verdict": "impaired",
        "log_ratio_nsr": "0.5123 [0.4, 0.6] RMS error / RMS signal (n = 100)",
    }


def test_a_cell_whose_truth_does_not_repeat_itself_fails_its_test(tmp_path: Path) -> None:
    """It is kept all the same: the record holds what was measured."""
    recorder = Recorder(tmp_path / "report.json", ())
    metrics = {"log_ratio_nsr": Metric(2.0, 1.9, 2.1, 100, "RMS error / RMS signal")}
    evidence = floor(DECISIONS["H1"].limit)
    with pytest.raises(AssertionError, match=r"FP32 in another batch shape is off by 0\.316"):
        keeper(recorder, lambda *_: None)(
            Cell("H1", "bf16_pure", "inconclusive", metrics, evidence)
        )
    assert len(recorder.cells) == 1


def test_the_same_core_is_green_with_target_too(tmp_path: Path, baseline: Path) -> None:
    target = "--target=precision_lib.ppo"
    done = run_in(tmp_path, "-v", *FORENSICS, target, f"--baseline={baseline}")
    assert done.returncode == 0, done.stdout
    passed = [line for line in done.stdout.splitlines() if " PASSED " in line]
    assert len(passed) == 9, "eight checks and one comparison"
    assert "test_core_is_no_worse_than_the_baseline[whiten]" in passed[-1], "behind all others"
    assert f"gate: no regression, 1 comparisons with {baseline}" in done.stdout
    assert (tmp_path / "pr.md").read_text().startswith("### Precision: no regression\n")


def test_a_planted_fault_is_a_regression_with_everything_about_it(
    broken: tuple[Done, Path],
) -> None:
    done, _ = broken
    assert done.returncode == 1
    [line] = [x for x in done.stdout.splitlines() if x.startswith("REGRESSION ")]
    for part in ("core: worst_over_limit 0.0003", " times the limit, limit 1 (", "whiten-"):
        assert part in line
    assert line.endswith("component: whiten")
    assert "FAILED tests/forensics/test_regressions.py::test_core_is_no_worse_than" in done.stdout
    assert f"inconclusive: {FAULT} was planted: this run is not a measurement" in done.stdout


def test_the_regressions_test_fails_without_a_traceback(broken: tuple[Done, Path]) -> None:
    output = broken[0].stdout.split("test_core_is_no_worse_than_the_baseline[whiten] ___")[1]
    assert output.splitlines()[1].startswith("core: worst_over_limit ")
    assert "Error" not in output.splitlines()[2]


def test_record_junit_and_markdown_say_the_same(broken: tuple[Done, Path]) -> None:
    _, directory = broken
    record = read(directory / "report.json")
    [change] = record["precision"]["regressions"]
    assert record["exitcode"] == 1
    assert record["precision"]["gate"]["verdict"] == "regression"
    [figures] = properties(directory, "test_core_is_no_worse_than_the_baseline")
    assert figures == {"whiten worst_over_limit": change["message"]}
    text = (directory / "pr.md").read_text()
    assert text.startswith("### Precision: regression\n")
    assert f"| core | whiten | `worst_over_limit` | {change['before']:.4g} |" in text


def test_the_command_gives_the_same_verdict_of_that_record(
    broken: tuple[Done, Path], baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = str(broken[1] / "report.json")
    assert cli.main(["gate", report, f"--baseline={baseline}"]) == 1
    gate = [x for x in broken[0].stdout.splitlines() if x.startswith(("gate:", "REGR", "inconcl"))]
    assert capsys.readouterr().out.splitlines() == gate


def test_a_selection_is_inconclusive_and_says_what_it_did_not_measure(
    tmp_path: Path, baseline: Path
) -> None:
    """And its skipped tests do not let it end with 0."""
    more: dict[str, Any] = json.loads(baseline.read_text())
    more["conformance"]["functions"]["gae"] = more["conformance"]["functions"]["whiten"]
    more["cells"] = {"H1": {"bf16_pure": {"verdict": "impaired", "metrics": {}}}}
    (tmp_path / "more.json").write_text(json.dumps(more))
    selection = "whiten and constant or no_worse"
    done = run_in(
        tmp_path, "tests/forensics", "-k", selection, f"--baseline={tmp_path / 'more.json'}"
    )
    assert done.returncode == 2, done.stdout
    assert (
        "inconclusive: unused entries: the baseline has H1 bf16_pure, core gae, which this run did "
        "not measure"
    ) in done.stdout
    assert "9 passed, 2 skipped" in done.stdout
    assert "inconclusive: this cell was not measured in this run" in done.stdout
    assert read(tmp_path / "report.json")["exitcode"] == 2


def test_a_run_that_measures_nothing_is_inconclusive(tmp_path: Path, baseline: Path) -> None:
    test = "tests/unit/test_formats.py"
    done = run_checkout(test, *outputs_in(tmp_path), f"--baseline={baseline}")
    assert done.returncode == 2
    assert "inconclusive: the run measured nothing: it names no device" in done.stdout
    assert (tmp_path / "pr.md").read_text().startswith("### Precision: inconclusive\n")


def test_no_baseline_is_written_by_a_run_that_failed(tmp_path: Path, baseline: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_bytes(baseline.read_bytes())
    options = [f"--plant-fault={FAULT}", "--update-baseline", f"--baseline={kept}"]
    done = run_in(tmp_path, *CONFORMANCE, *options)
    assert done.returncode == 1
    assert "--update-baseline: tests failed: the baseline stays as it was" in done.stdout
    assert kept.read_bytes() == baseline.read_bytes()


def test_a_part_of_the_main_job_does_not_replace_the_baseline_of_the_whole(tmp_path: Path) -> None:
    """It says so at its end, and what it measured is kept; nor does --markdown into a directory."""
    (tmp_path / "pr.md").mkdir()
    before = sorted(ROOT.glob("baselines/*"))
    done = run_in(tmp_path, *CONFORMANCE, "--update-baseline")
    assert done.returncode == 4
    assert "--update-baseline: a baseline of a part of the main job (--quick, --t" in done.stdout
    assert "pr.md is a directory; give the name of a file" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert read(tmp_path / "report.json")["precision"]["conformance"]["functions"]
    assert sorted(ROOT.glob("baselines/*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--baseline=none.json",), "ERROR: --baseline: baseline none.json does not exist; pyt"),
        (("--baseline=README.md",), "ERROR: --baseline: baseline README.md cannot be read: "),
        (("--update-baseline", "--quick"), "--target or a sweep needs --baseline FILE"),
        (
            ("tests/forensics/test_regressions.py",),
            "compares with a baseline: give --baseline FILE",
        ),
    ],
)
def test_what_does_not_fit_is_a_usage_error_before_anything_is_measured(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = run_in(tmp_path, "-m", "forensics", *arguments)
    assert done.returncode == 4
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "report.json").exists()


def test_without_a_baseline_its_tests_are_not_collected() -> None:
    done = run_suite("--collect-only", "-q", *FORENSICS)
    assert done.returncode == 0
    assert "test_property_holds[whiten-constant" in done.stdout
    assert "test_regressions" not in done.stdout
