"""The core under test and the observed formats against a baseline.

The hazard. A core with known failures needs a gate too, and a core that lost its checks, or that
runs in bf16 what was asked for in FP32, looks like one that is fine.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from precision_lib.compare.baseline import load_baseline
from precision_lib.compare.comparison import Comparison
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, cell, counts, judge, known, metric, parsed


def core_run(target: str = "core", **functions: dict[str, Any]) -> Block:
    """A run of the conformance checks alone, as a record of it is read back."""
    return parsed(small.block(conformance=small.core(target, **functions)))


def judged(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Of one function's counts."""
    return judge(core_run(whiten=after), known(core_run(whiten=before)))


def test_a_core_without_failures_is_green() -> None:
    got = judged(counts(), counts(worst=0.9))
    assert (got.exit_code, got.compared, got.inconclusive) == (0, 1, ())


def test_a_newly_failed_check_is_a_regression_by_its_error() -> None:
    got = judged(counts(worst=0.25), counts("a[bf16]", "b", "c", worst=37.5))
    assert got.exit_code == 1
    assert [c.message for c in got.worse] == [
        "core: worst_over_limit 0.25 -> 37.5 times the limit, limit 1 (what FP32 arithmetic "
        "may do: a[bf16] and 2 more); component: whiten"
    ]


def test_an_infinite_error_survives_json() -> None:
    """Strict JSON has no infinity, so a record holds its name."""
    got = judged(counts(worst=0.25), counts("a", worst="inf"))
    assert "worst_over_limit 0.25 -> not finite times the limit, limit 1" in got.worse[0].message
    assert judged(counts("a", worst="inf"), counts(worst=0.5)).better[0].before == float("inf")


def test_a_check_without_a_limit_is_counted() -> None:
    """Properties are exact, and so have no error to show."""
    got = judged(counts(worst=0.25), counts("a", worst=0.5))
    assert [c.message for c in got.worse] == [
        "core: failed_checks 0 -> 1 checks, limit 0 (what FP32 arithmetic may do: a); "
        "component: whiten"
    ]


@pytest.mark.parametrize("worst", [(0.5, 0.5), (7.0, 7.0), (7.0, 5.0)])
def test_a_new_failure_beside_a_known_one_says_what_changed(worst: tuple[float, float]) -> None:
    """Not "1 -> 1, limit 1" where one check was fixed, nor "7 -> 5 times" of a known failure."""
    got = judged(counts("a", worst=worst[0]), counts("b", worst=worst[1]))
    assert got.exit_code == 1
    [change] = got.worse
    assert (change.metric, change.before, change.after, change.limit) == ("failed_checks", 0, 1, 0)
    assert change.reason.endswith(": b")


def test_a_known_failure_is_no_regression() -> None:
    got = judged(counts("a", worst=7.0), counts("a", worst=7.0))
    assert (got.worse, got.better) == ((), ())


def test_the_errors_that_an_older_baseline_holds_are_ignored(tmp_path: Path) -> None:
    baseline = known(core_run(whiten=counts("a", worst=7.0)))
    baseline["conformance"]["functions"]["whiten"]["errors"] = {"a": {"input": "x", "times": 7.0}}
    (tmp_path / "b.json").write_text(json.dumps({"schema": 2} | baseline))
    got = judge(core_run(whiten=counts("a", worst=1e9)), load_baseline(tmp_path / "b.json"))
    assert (got.exit_code, got.compared, got.inconclusive) == (0, 1, ())


def test_a_fixed_check_is_an_improvement() -> None:
    got = judged(counts("a", "b", worst=7.0), counts("a", worst=0.5))
    assert (got.exit_code, got.worse) == (0, ())
    assert got.better[0].message.startswith("core: worst_over_limit 7 -> 0.5 times")
    assert got.better[0].reason.endswith(": b")


def test_fewer_checks_are_neither_green_nor_an_improvement() -> None:
    got = judged(counts("a", tests=5), counts(tests=4))
    assert (got.exit_code, got.worse, got.better) == (2, (), ())
    assert got.inconclusive == (
        "fewer checks: core whiten ran 4 on 10 inputs that compared 100 elements, the baseline "
        "5 on 10",
    )
    assert judged(counts(tests=5), counts(tests=6)).exit_code == 0


def test_checks_that_compared_nothing_are_not_green() -> None:
    got = judged(counts(), counts(compared=0))
    assert got.exit_code == 2
    assert "ran 5 on 10 inputs that compared 0 elements" in got.inconclusive[0]


def test_another_core_is_not_compared() -> None:
    got = judge(core_run("mine", gae=counts("a")), known(core_run("theirs", gae=counts())))
    assert (got.exit_code, got.compared, got.worse) == (2, 0, ())
    assert got.inconclusive == ("other core: the baseline is of theirs, this run of mine",)


@pytest.mark.parametrize("side", ["run", "baseline"])
def test_a_run_without_a_core_is_not_green(side: str) -> None:
    cells, both = small.whole(conformance={}), small.whole()
    got = judge(cells, known(both)) if side == "run" else judge(both, known(cells))
    assert got.exit_code == 2
    word = "unused" if side == "run" else "missing"
    assert f"{word} entries: the baseline " in got.inconclusive[0]
    assert "core gae, core whiten" in got.inconclusive[0]


def seen(observed: str) -> Block:
    formats = {"policy": observed, "reward": None}
    return small.block(cell("H1", "bf16_pure", observed=formats, log_ratio_nsr=metric(0.5)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("fp32", "bf16"),
        ("fp32", "fp16"),
        ("fp64", "fp32"),
        ("fp32", "bf16 in fp32"),
        ("fp32", "bf16+fp32"),
        ("bf16+fp32", "bf16"),
        ("fp32", "bf16 in fp32+fp32"),
        ("fp32", "bf16+bf16 in fp32"),
    ],
)
def test_fewer_digits_at_run_time_are_a_regression_and_more_an_improvement(
    before: str, after: str
) -> None:
    worse, better = judge(seen(after), known(seen(before))), judge(seen(before), known(seen(after)))
    assert worse.exit_code == 1
    assert [c.message for c in worse.worse] == [
        f"formats bf16_pure: observed format {before} -> {after}, limit {before} (as the tensors "
        "had it at run time); component: policy"
    ]
    assert [(c.before, c.after) for c in better.better] == [(after, before)]


@pytest.mark.parametrize("after", ["bf16", "bf16 in fp32", "bf16+bf16 in fp32"])
def test_as_many_digits_in_other_storage_are_neither(after: str) -> None:
    """An improvement would be held on to, and nothing was gained: bf16's digits, stored wider."""
    got = judge(seen(after), known(seen("bf16")))
    assert (got.worse, got.better) == ((), ())
