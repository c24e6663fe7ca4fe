"""The gate: with --baseline, nothing may be worse than it; collected behind all other tests.

Thin callers of ``precision_lib.records.gate``. What cannot be compared is skipped with the reason,
and then the run as a whole ends with exit code 2.
"""

from collections.abc import Callable

import pytest

from precision_lib.plugin.gating import BASELINE
from precision_lib.records.baseline import Baseline
from precision_lib.records.changes import Change
from precision_lib.records.gate import Judgement, judge
from precision_lib.records.record import Recorder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    nothing: Baseline = {"cells": {}, "conformance": {}}  # a run without one ends in conftest.py
    baseline = metafunc.config.stash.get(BASELINE, nothing)
    if "cell" in metafunc.fixturenames:
        cells = [(h, c) for h, found in baseline["cells"].items() for c in found]
        metafunc.parametrize("cell", cells, ids="-".join)
    if "function" in metafunc.fixturenames:
        metafunc.parametrize("function", baseline["conformance"].get("functions", []))


@pytest.fixture(scope="module")
def judgement(pytestconfig: pytest.Config, recorder: Recorder) -> Judgement:
    """What the gate says of all that this run has measured."""
    return judge(recorder.block(), pytestconfig.stash[BASELINE])


@pytest.fixture
def no_worse(
    judgement: Judgement, record_property: Callable[[str, object], None]
) -> Callable[[list[Change]], None]:
    """Fail with the message of each regression; its figures go into the JUnit file."""

    def check(regressions: list[Change]) -> None:
        for change in regressions:
            record_property(f"{change.component} {change.metric}", change.message)
        if regressions:
            pytest.fail("\n".join(c.message for c in regressions), pytrace=False)
        if not judgement.compared:
            pytest.skip(f"inconclusive: {'; '.join(judgement.obstacles)}")

    return check


def test_cell_is_no_worse_than_the_baseline(
    cell: tuple[str, str],
    recorder: Recorder,
    judgement: Judgement,
    no_worse: Callable[[list[Change]], None],
) -> None:
    """Every metric of the cell, in the direction that is worse for it."""
    hypothesis, configuration = cell
    if cell not in {(c["hypothesis"], c["configuration"]) for c in recorder.cells}:
        pytest.skip("inconclusive: this cell was not measured in this run")
    wheres = (hypothesis, "formats")
    no_worse(
        [
            change
            for change in judgement.regressions
            if change.configuration == configuration and change.where in wheres
        ]
    )


def test_core_is_no_worse_than_the_baseline(
    function: str,
    recorder: Recorder,
    judgement: Judgement,
    no_worse: Callable[[list[Change]], None],
) -> None:
    """No check of the function fails that passed before."""
    tested = recorder.conformance.functions if recorder.conformance else {}
    if function not in tested:
        pytest.skip("inconclusive: this function was not tested in this run")
    core = [c for c in judgement.regressions if c.where == "core"]
    no_worse([change for change in core if change.component == function])
