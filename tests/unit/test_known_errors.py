"""Known failures that grow: seen when chance does not explain it, and not before."""

import random
from typing import Any

import pytest

from precision_lib.records.baseline import BaselineError, load_baseline, write_baseline
from precision_lib.records.gate import judge
from precision_lib.records.known_errors import error_growth, measured_errors, paired
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, counts, known, parsed

LARGEST = 1e300


def grown(before: list[float], after: list[float], families: int = 1, **options: bool) -> bool:
    pairs = {f"check_{i}": pair for i, pair in enumerate(zip(before, after, strict=True))}
    return bool(error_growth("whiten", pairs, families, **options))


def test_the_same_errors_are_no_change() -> None:
    assert not grown([3.0, 7.0], [3.0, 7.0])
    assert not grown([], [])


def test_one_error_may_be_a_thousand_times_larger_by_chance_and_no_more() -> None:
    assert not grown([2.0], [1998.0])
    assert grown([2.0], [2002.0])
    assert not grown([2.0], [17_000.0], families=9)
    assert grown([2.0], [19_000.0], families=9)


def test_a_bit_that_is_lost_everywhere_is_seen_and_in_a_few_checks_is_not() -> None:
    before = [10.0] * 20
    assert grown(before, [20.0] * 20)
    assert not grown(before, [20.0] * 10 + [10.0] * 10)
    assert not grown(before, [5.0] * 20)
    assert grown(before, [5.0] * 20, shrunk=True)


def test_what_is_not_finite_any_more_is_seen_among_many() -> None:
    assert grown([10.0] * 100, [10.0] * 99 + [LARGEST])


@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_roundings_of_another_order_are_called_a_regression_as_seldom_as_promised(
    count: int, seed: int
) -> None:
    """Errors spread evenly over their size, drawn anew: 1 in 1,000 at most; here 2,000 draws."""
    draw = random.Random(seed)

    def drawn() -> list[float]:
        return [draw.uniform(0, 100) for _ in range(count)]

    alarms = sum(grown(drawn(), drawn()) for _ in range(2000))
    assert alarms <= 8  # 2 expected at most; P(Poisson(2) > 8) = 2e-4


def errors(digest: str, **times: float) -> dict[str, tuple[str, float]]:
    return {name: (digest, value) for name, value in times.items()}


def test_each_format_is_a_family_and_one_input_counts_once() -> None:
    names = ["f-a-fp32]", "f-a-bf16]", "f-b-bf16]", "pinned]"]
    before = {name: (f"input of {name[:3]}", 2.0) for name in names}
    pairs = paired(before, before)
    assert {k: list(v) for k, v in pairs.families.items()} == {
        "fp32": ["f-a-fp32]"],
        "bf16": ["f-a-bf16]", "f-b-bf16]"],
        "": ["pinned]"],
    }
    twice = paired(errors("same", a=2.0, b=2.0), errors("same", a=3.0, b=3.0))
    assert (twice.families, twice.compared) == ({"": {"a": (2.0, 3.0)}}, 2)


def test_no_number_any_more_is_the_largest_error_and_twice_none_says_nothing() -> None:
    assert paired(errors("x", a=2.0), errors("x", a=0.0)).families == {"": {"a": (2.0, LARGEST)}}
    infinite = errors("x", a=LARGEST)
    assert (paired(infinite, infinite).families, paired(infinite, infinite).compared) == ({}, 1)


def test_another_input_is_not_compared_and_counted() -> None:
    pairs = paired(errors("x", a=2.0), errors("y", a=1e9))
    assert (pairs.families, pairs.compared, pairs.elsewhere) == ({}, 0, ["a"])


def failed_run(times: float | str, checks: int = 12, case: str = "Case({})") -> Block:
    """A run of a core in which so many checks of one function fail by so much."""
    names = [f"check_{i}" for i in range(checks)]
    core = small.core("core", whiten=counts(*names, worst=times))
    core["failures"] = {name: {"input": case.format(name), "times": times} for name in names}
    return parsed(small.block(conformance=core))


def test_growth_is_a_regression_with_everything_about_it() -> None:
    baseline = known(failed_run(10.0))
    got = judge(failed_run(160.0), baseline)
    assert got.exit_code == 1
    [change] = got.regressions
    assert change.message.startswith("core: known_errors 10 -> 160 times the limit, limit ")
    assert change.message.endswith(
        "(12 of 12 known failures grew by 16 or more: check_0); component: whiten"
    )
    assert 10 < float(change.limit) < 40
    same = judge(failed_run(10.0), baseline)
    assert (same.exit_code, same.compared) == (0, 13)
    better = judge(failed_run(0.625), baseline)
    assert (better.exit_code, len(better.improvements)) == (0, 1)


def test_checks_that_raise_now_are_a_regression() -> None:
    assert judge(failed_run(0.0), known(failed_run(10.0))).exit_code == 1


@pytest.mark.parametrize("case", ["Case({}, another)", ""])
def test_a_list_of_other_inputs_cannot_be_compared(case: str) -> None:
    """Neither a list that was made again nor an input that passes now hides what got worse."""
    got = judge(failed_run(1e9, case=case), known(failed_run(10.0)))
    assert got.exit_code == 2
    assert got.obstacles == (
        "other inputs: core whiten fails 12 of 12 known checks on another input than in the "
        "baseline; make the list of known failures and the baseline again",
    )


def test_an_infinite_error_is_a_number_and_none_is_0() -> None:
    failures: dict[str, dict[str, Any]] = {"a": {"input": "Case()", "times": "inf"}}
    assert measured_errors({"failed": ["a"]}, failures)["a"][1] == LARGEST
    assert measured_errors({"failed": ["a"]}, {"a": {"input": "", "times": 0}})["a"] == ("", 0.0)
    assert measured_errors({"failed": ["a"]}, {}) == {}


@pytest.mark.parametrize(
    "entry",
    [
        *({"input": "x", "times": times} for times in (0.0, -1.0, "inf", None)),
        {"input": 1, "times": 2.0},
        {"input": "x"},
        ["x", 2.0],
        None,
    ],
)
def test_a_baseline_with_another_error_is_damaged(entry: object, tmp_path: Any) -> None:
    baseline = known(failed_run(10.0))
    baseline["conformance"]["functions"]["whiten"]["errors"]["check_0"] = entry
    write_baseline(tmp_path / "b.json", baseline)
    with pytest.raises(BaselineError, match="is damaged"):
        load_baseline(tmp_path / "b.json")
