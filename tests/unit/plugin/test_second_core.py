"""Tests that a second process ran are reported as if they had run here; what it lost runs here."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from precision_lib.conformance.checks import find_check
from precision_lib.conformance.runner import run as run_check
from precision_lib.faults import plant
from precision_lib.forensics.evidence import H4Evidence
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.matrix import get_configuration
from precision_lib.plugin import second_core
from precision_lib.plugin.second_core import SECOND, SecondCore, is_wanted, outcome
from precision_lib.ppo import whiten
from precision_lib.record.recorder import Recorder

PURE = get_configuration("bf16_pure")
OPTIONS = {"jobs": None, "plant_fault": None, "target": None, "gpu": False, "usepdb": False}


def recorder_of(path: Path, *hypotheses: str) -> Recorder:
    recorder = Recorder(path / "report.json", [PURE])
    recorder.expected = [(name, PURE.name) for name in hypotheses]
    return recorder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jobs": 1},
        {"plant_fault": "k3_as_textbook"},
        {"target": "trl"},
        {"gpu": True},
        {"usepdb": True},
        {"numprocesses": 2},
    ],
)
def test_it_is_wanted_where_nothing_else_can_differ(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_core, "may_help", lambda *_: True)
    config: Any = SimpleNamespace(option=SimpleNamespace(**OPTIONS | options))
    models: Any = SimpleNamespace(policy=SimpleNamespace(model=None))
    assert is_wanted(config, recorder_of(tmp_path, "H1", "H4"), models) == (not options)
    assert not is_wanted(config, recorder_of(tmp_path, "H4"), models), "nothing is left for here"
    assert not is_wanted(config, recorder_of(tmp_path, "H1"), models)
    config.workerinput = {}
    assert not is_wanted(config, recorder_of(tmp_path, "H1", "H4"), models)


#: What the second process runs: the third test ends it, so that the fourth never comes from there.
SUITE = """
import os


def test_measures(pytestconfig, record_property):
    print("seen by nobody")
    record_property("pid", os.getpid())
    pytestconfig.measure()


def test_fails(record_property):
    record_property("pid", os.getpid())
    assert 1 == 2, "the reason"


def test_ends_another_process(pytestconfig, record_property):
    record_property("pid", os.getpid())
    if os.getpid() != pytestconfig.first:
        os._exit(0)


def test_comes_after_it(record_property):
    record_property("pid", os.getpid())
"""


class Run:
    """A plug-in that begins the second process, and keeps the reports."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.reports: dict[str, pytest.TestReport] = {}

    def pytest_configure(self, config: Any) -> None:
        config.first, config.measure = os.getpid(), self.measure
        config.addinivalue_line("markers", "unit: the tests of this suite")

    def measure(self) -> None:
        metric = Metric(0.1, -math.inf, 0.3, 7, "nats")
        self.recorder.add_cell(
            Cell("H4", PURE.name, "healthy", {"accum_err_final": metric}, H4Evidence())
        )
        self.recorder.context |= {"h4": {"length": 64}}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        second_core.begin(session, self.recorder)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.reports[report.nodeid.rpartition("::")[2]] = report


def run_beside(path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (path / "test_h4_suite.py").write_text(SUITE)
    (path / "empty.ini").write_text("[pytest]")
    monkeypatch.setattr(second_core, "FORENSICS", path)
    run = Run(recorder_of(path, "H1", "H4"))
    settings = ["-c", str(path / "empty.ini"), "--import-mode=importlib", "-p", "no:cacheprovider"]
    settings += ["--json-report", f"--json-report-file={path / 'tests.json'}"]
    assert pytest.main([*settings, "-q", str(path)], plugins=[run]) == pytest.ExitCode.TESTS_FAILED
    return run


def test_reports_and_cells_of_the_second_process_are_this_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_beside(tmp_path, monkeypatch)
    here = {
        name: report.user_properties == [("pid", os.getpid())]
        for name, report in run.reports.items()
    }
    assert here == {
        "test_measures": False,
        "test_fails": False,
        "test_ends_another_process": True,
        "test_comes_after_it": True,
    }
    outcomes = {name: report.outcome for name, report in run.reports.items()}
    assert {name for name, outcome in outcomes.items() if outcome == "failed"} == {"test_fails"}
    assert "the reason" in run.reports["test_fails"].longreprtext
    shown = capfd.readouterr()
    assert "1 failed, 3 passed" in shown.out
    assert "seen by nobody" not in shown.out + shown.err
    assert shown.out.count("the second process ended early (it was killed)") == 1
    tests = json.loads((tmp_path / "tests.json").read_text())["tests"]
    assert [test["outcome"] for test in tests] == ["passed", "failed", "passed", "passed"]


def test_a_cell_of_the_second_process_is_the_one_that_this_one_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_beside(tmp_path, monkeypatch)
    own = Run(recorder_of(tmp_path / "own", "H1", "H4"))
    own.measure()
    assert run.recorder.cells == own.recorder.cells
    assert run.recorder.context == own.recorder.context
    lines = run.recorder.cells_path.read_text().splitlines()
    assert len(lines) == 1, "once, by who has measured it"


def test_an_outcome_is_that_of_the_same_examples(tmp_path: Path) -> None:
    check = "test_values_are_within_their_bound[whiten-ordinary-fp32]"
    session: Any = SimpleNamespace(items=[])
    second = SecondCore(session, recorder_of(tmp_path))
    second._checks = [check]
    delivered = dict(second._outcomes())
    config = cast("pytest.Config", SimpleNamespace(stash=pytest.Stash()))
    assert outcome(config, check, 0) is None
    config.stash[SECOND] = second
    second.process._received = delivered
    assert outcome(config, check, 0) == run_check(find_check(check), whiten)
    assert outcome(config, check, 1) is None, "another seed draws others"
    with plant("population_std"):
        assert not dict(second._outcomes()), "a failure is found again where it is reported"
