"""Known failures that grow: seen when chance does not explain it, and not before."""

import random

import pytest

from precision_lib.records.gate import judge
from precision_lib.records.known_errors import error_growth, measured_errors
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, counts, known, parsed

Errors = dict[str, tuple[str, float]]


def errors(*times: float, digest: str = "same") -> Errors:
    return {f"check_{i}": (digest, t) for i, t in enumerate(times)}


def grown(before: Errors, after: Errors, **options: bool) -> bool:
    return bool(error_growth("whiten", before, after, functions=1, **options))


def test_the_same_errors_are_no_change() -> None:
    assert not grown(errors(3.0, 1e300), errors(3.0, 1e300))
    assert not grown({}, errors(3.0))


def test_one_error_may_be_a_thousand_times_larger_by_chance_and_no_more() -> None:
    assert not grown(errors(2.0), errors(1998.0))
    assert grown(errors(2.0), errors(2002.0))


def test_a_bit_that_is_lost_everywhere_is_seen_and_in_a_few_checks_is_not() -> None:
    before = errors(*[10.0] * 20)
    assert grown(before, errors(*[20.0] * 20))
    assert not grown(before, errors(*[20.0] * 10, *[10.0] * 10))
    assert not grown(before, errors(*[5.0] * 20))
    assert grown(before, errors(*[5.0] * 20), shrunk=True)


def test_what_is_not_finite_any_more_is_seen_among_many() -> None:
    before = errors(*[10.0] * 100)
    assert grown(before, errors(*[10.0] * 99, 1e300))


def test_another_input_is_not_compared() -> None:
    assert not grown(errors(1.0), errors(1e9, digest="another"))


@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_roundings_of_another_order_are_called_a_regression_as_seldom_as_promised(
    count: int, seed: int
) -> None:
    """Errors spread evenly over their size, drawn anew: 1 in 1,000 at most; here 2,000 draws."""
    draw = random.Random(seed)
    alarms = sum(
        grown(*(errors(*[draw.uniform(0, 100) for _ in range(count)]) for _ in range(2)))
        for _ in range(2000)
    )
    assert alarms <= 8  # 2 expected at most; P(Poisson(2) > 8) = 2e-4


def failed_run(times: float | str, checks: int = 12) -> Block:
    """A run of a core in which so many checks of one function fail by so much."""
    names = [f"check_{i}" for i in range(checks)]
    core = small.core("core", whiten=counts(*names, worst=times))
    core["failures"] = {name: {"input": f"Case({name})", "times": times} for name in names}
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
    assert judge(failed_run(10.0), baseline).exit_code == 0
    better = judge(failed_run(0.625), baseline)
    assert (better.exit_code, len(better.improvements)) == (0, 1)


def test_a_record_without_inputs_has_nothing_to_compare() -> None:
    assert measured_errors({"failed": ["a"]}, {"a": {"input": "", "times": 2.0}}) == {}
    assert measured_errors({"failed": ["a"]}, {}) == {}
    exact = {"a": {"input": "Case()", "times": 0.0}}
    assert measured_errors({"failed": ["a"]}, exact) == {}
    infinite = {"a": {"input": "Case()", "times": "inf"}}
    assert measured_errors({"failed": ["a"]}, infinite)["a"][1] == 1e300
