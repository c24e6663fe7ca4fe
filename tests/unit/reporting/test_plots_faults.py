"""The fault matrix says who caught what, and is loud about what nobody caught; benchmark ratios."""

from typing import Any

import pytest

from precision_lib.record.codec import decode
from precision_lib.record.context import Context
from precision_lib.record.self_test import FaultOutcome, SelfTest
from precision_lib.reporting.benchmarks import results_of
from precision_lib.reporting.plots import benchmarks, faults
from precision_lib.reporting.plots.picture import NothingToDrawError
from tests.unit.reporting import report_results as given


def drawn(*found: dict[str, Any]) -> tuple[Any, list[str]]:
    """The picture of some faults, and its texts."""
    outcomes = tuple(decode(FaultOutcome, fault) for fault in found)
    picture = faults.matrix(SelfTest(Context(), outcomes, None))
    return picture, [t.get_text() for axis in picture.figure.axes for t in axis.texts]


@pytest.mark.parametrize(
    ("test", "who"),
    [
        ("test_values_are_within_their_bound[whiten-ordinary-fp32]", "core"),
        ("test_h1_kl_collapse.py::test_x", "H1"),
        ("test_h4_reference_drift.py::test_x", "H4"),
        ("gate: H3 bf16_pure advantage_rms_error", "gate"),
    ],
)
def test_who_caught_it_is_read_from_the_test(test: str, who: str) -> None:
    assert faults.catcher(test) == who


def test_largest_margin_of_each_catcher_counts() -> None:
    fault = given.fault("a", core=10.0, H1=None)
    more = {"by": "test_property_holds[x]", "margin": 1000.0, "unit": ""}
    both = decode(FaultOutcome, fault | {"caught": [*fault["caught"], more]})
    assert faults.margins(both) == {
        "core": 1000.0,
        "H1": None,
    }


def test_margin_is_a_number_in_the_cell_and_in_the_table() -> None:
    picture, texts = drawn(given.fault("a", core=2000.0, H1=None), given.fault("b", core="inf"))
    assert [t for t in texts if t in ("3", "✓", "∞")] == ["3", "✓", "∞"]
    assert picture.table.rows[0][:4] == ("gae", "a", "caught", "core 2.0e+03×, H1")
    assert "None was missed." in picture.caption


def test_a_missed_fault_and_a_false_alarm_cannot_be_overlooked() -> None:
    picture, texts = drawn(
        given.fault("lost", outcome="missed"),
        given.fault("harmless", outcome="false alarm", core=2.0),
        given.fault("small", outcome="below the noise floor"),
    )
    assert "MISSED: lost" in texts
    assert "FALSE ALARM: harmless" in texts
    assert "below the noise floor" in texts
    assert "MISSED: lost." in picture.caption
    assert "FALSE ALARM: harmless." in picture.caption
    assert [row[2] for row in picture.table.rows] == [
        "MISSED",
        "FALSE ALARM",
        "below the noise floor",
    ]


def test_a_hundred_and_twenty_faults_fit_on_a_page() -> None:
    picture, texts = drawn(*given.self_test()["faults"])
    assert picture.figure.get_figheight() < 11
    assert len([t for t in texts if t.startswith("fault_")]) == 120
    assert len(picture.table.rows) == 120


def test_nothing_planted_is_nothing_to_draw() -> None:
    with pytest.raises(NothingToDrawError, match="no fault was planted"):
        drawn()


def test_benchmark_ratios_are_against_the_core_and_a_wrong_result_is_hollow() -> None:
    picture = benchmarks.ratios(results_of(given.benchmarks()))
    lines = [line for line in picture.figure.axes[0].lines if len(line.get_xdata())]
    points = {
        line.get_markerfacecolor() == "white": list(line.get_xdata())
        for line in lines
        if line.get_linestyle() == "None"
    }
    assert points == {False: [2.0, 2.0], True: [0.5, 0.5]}
    ratios = {row[2]: row[5] for row in picture.table.rows}
    assert ratios == {"this suite": "1.00", "slow peer": "2.00", "wrong peer": "0.50"}


def test_benchmarks_of_something_else_are_nothing_to_draw() -> None:
    others = given.benchmarks() | {"benchmarks": [{"extra_info": {}, "stats": {"median": 1.0}}]}
    with pytest.raises(NothingToDrawError, match="no step of the PPO core"):
        benchmarks.ratios(results_of(others))
