"""The gate: with --baseline, nothing may be worse than it; collected behind all other tests.

Thin callers of ``precision_lib.compare.gate``. What cannot be compared is skipped with the reason,
and then the run as a whole ends with exit code 2.
"""

from collections.abc import Callable

import pytest

from precision_lib.compare.comparison import Comparison
from precision_lib.compare.gate import judge
from precision_lib.plugin.gating import BASELINE
from precision_lib.record.changes import Change
from precision_lib.record.recorder import Recorder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    baseline = metafunc.config.stash.get(BASELINE, None)  # a run without one ends in the plug-in
    if "cell" in metafunc.fixturenames:
        cells = [(h, c) for h, of in baseline.cells.items() for c in of] if baseline else []
        metafunc.parametrize("cell", cells, ids="-".join)
    if "function" in metafunc.fixturenames:
        core = baseline.conformance if baseline else None
        metafunc.parametrize("function", list(core.functions) if core else [])


@pytest.fixture(scope="module")
def comparison(pytestconfig: pytest.Config, recorder: Recorder) -> Comparison:
    """What the gate says of all that this run has measured."""
    return judge(recorder.record(), pytestconfig.stash[BASELINE])


@pytest.fixture
def no_worse(
    comparison: Comparison, record_property: Callable[[str, object], None]
) -> Callable[[list[Change]], None]:
    """Fail with the message of each regression; its figures go into the JUnit file."""

    def check(regressions: list[Change]) -> None:
        for change in regressions:
            record_property(f"{change.component} {change.metric}", change.message)
        if regressions:
            pytest.fail("\n".join(c.message for c in regressions), pytrace=False)
        if not comparison.compared:
            pytest.skip(f"inconclusive: {'; '.join(comparison.inconclusive)}")

    return check


def test_cell_is_no_worse_than_the_baseline(
    cell: tuple[str, str],
    recorder: Recorder,
    comparison: Comparison,
    no_worse: Callable[[list[Change]], None],
) -> None:
    """Every metric of the cell, in the direction that is worse for it."""
    hypothesis, configuration = cell
    if cell not in recorder.cells:
        pytest.skip("inconclusive: this cell was not measured in this run")
    wheres = (hypothesis, "formats")
    no_worse(
        [
            change
            for change in comparison.worse
            if change.configuration == configuration and change.where in wheres
        ]
    )


def test_core_is_no_worse_than_the_baseline(
    function: str,
    recorder: Recorder,
    comparison: Comparison,
    no_worse: Callable[[list[Change]], None],
) -> None:
    """No check of the function fails that passed before."""
    tested = recorder.conformance.functions if recorder.conformance else {}
    if function not in tested:
        pytest.skip("inconclusive: this function was not tested in this run")
    core = [c for c in comparison.worse if c.where == "core"]
    no_worse([change for change in core if change.component == function])
