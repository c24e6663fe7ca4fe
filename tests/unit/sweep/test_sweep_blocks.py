"""Intervals over a few seeds cover what they say, and the number of seeds needed is the smallest.

Coverage is simulated, with limits of 4.5 binomial standard errors. Normal errors and a seed effect
three times as large, eight configurations and three seeds, as a sweep has them.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest

from precision_lib.forensics.statistics import CONFIDENCE
from precision_lib.forensics.t_quantile import student_quantile
from precision_lib.sweep.blocks import MOST_SEEDS, Array, Blocks, seeds_needed

NAMES = tuple("abcdefgh")
SEEDS, TRIALS = 3, 3000
SEED_EFFECT = 3.0
SIGMAS = 4.5


def within(rate: float, wanted: float, trials: int = TRIALS) -> bool:
    return abs(rate - wanted) < SIGMAS * math.sqrt(wanted * (1 - wanted) / trials)


def noise(seed: int, deviations: list[float] | None = None, seeds: int = SEEDS) -> Array:
    """[TRIALS, C, S] of residuals and seed effects."""
    generator = np.random.default_rng(seed)
    own = generator.standard_normal((TRIALS, len(NAMES), seeds))
    common = SEED_EFFECT * generator.standard_normal((TRIALS, 1, seeds))
    scale = np.array(deviations or [1.0] * len(NAMES))
    return np.asarray(own * scale[:, None] + common)


def coverage_of_difference(tables: Array) -> float:
    """How often the interval of a - b holds 0, which is the truth."""
    found = (Blocks(table, NAMES).difference("a", "b") for table in tables)
    return float(np.mean([low <= 0 <= high for _, low, high in found]))


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9999])
def test_students_quantile_with_one_and_two_degrees_of_freedom_has_a_closed_form(
    confidence: float,
) -> None:
    """tan(pi p / 2), and p sqrt(2 / (1 - p^2)); 1 - p has half an ulp of 1 beneath it."""
    rounding = 4 * np.finfo(float).eps / (1 - confidence)
    one, two = student_quantile(1, confidence), student_quantile(2, confidence)
    assert one == pytest.approx(math.tan(math.pi * confidence / 2), rel=rounding)
    assert two == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)), rel=rounding)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 14, 101, 6993])
@pytest.mark.parametrize("confidence", [0.95, 0.9999])
def test_students_quantile_leaves_the_right_tail(degrees: int, confidence: float) -> None:
    """The regularised incomplete beta function (Abramowitz and Stegun, 26.7.1), by mpmath.

    The quantile is where a sum of up to n / 2 terms between 0 and 1 is the confidence; each
    addition rounds once, a few functions around it as well.
    """
    import mpmath

    t = student_quantile(degrees, confidence)
    x = degrees / (degrees + t * t)
    tail = float(mpmath.betainc(degrees / 2, 0.5, 0, x, regularized=True))
    assert abs(tail - (1 - confidence)) < (degrees / 2 + 8) * np.finfo(float).eps


def test_students_quantile_goes_to_the_normal_one() -> None:
    """From above, by (z^3 + z) / (4 n) at first order (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    for degrees in (100, 1000):
        first = (z**3 + z) / (4 * degrees)
        second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        beyond = student_quantile(degrees) - z - first
        assert 0 < beyond < 2 * second


def test_no_degree_of_freedom_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="0 degrees of freedom: give at least two seeds"):
        student_quantile(0)


def test_the_residual_is_what_neither_seeds_nor_configurations_explain() -> None:
    """A table of a_c + b_s has none; one entry d more has d sqrt((C-1)(S-1)) / (C S) of it."""
    generator = np.random.default_rng(0)
    added = generator.standard_normal((4, 1)) + generator.standard_normal((1, 3))
    exact = Blocks(added, NAMES[:4])
    assert exact.residual_deviation < 10 * np.finfo(float).eps
    assert exact.degrees == 6
    added[1, 2] += 6.0
    # Squares: d^2 (1 - 1/C)(1 - 1/S), on (C - 1)(S - 1) degrees of freedom.
    assert Blocks(added, NAMES[:4]).residual_deviation == pytest.approx(6 / math.sqrt(12))


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says() -> None:
    rate = coverage_of_difference(noise(0))
    assert within(rate, CONFIDENCE), rate


@pytest.mark.parametrize("wrong", ["of one mean", "seeds left in", "runs independent and normal"])
def test_a_wrong_interval_is_told_from_a_right_one(wrong: str) -> None:
    """What this file's limits are there to reject."""
    covered = []
    for table in noise(0):
        a, b = table[:2]
        width = {
            "of one mean": lambda t: Blocks(t, NAMES).half_width() / math.sqrt(2),
            "seeds left in": lambda t: (
                student_quantile(2 * SEEDS - 2) * math.sqrt(t[:2].var(1, ddof=1).sum() / SEEDS)
            ),
            "runs independent and normal": lambda t: (
                1.96 * (t[0] - t[1]).std(ddof=1) / math.sqrt(SEEDS)
            ),
        }[wrong](table)
        covered.append(abs((a - b).mean()) <= width)
    assert not within(float(np.mean(covered)), CONFIDENCE)


@pytest.mark.parametrize(
    ("deviations", "documented"),
    [([2.0] + 7 * [1.0], 0.86), (2 * [1.0] + 6 * [2.0], None), ([2.0, 1.0, 1.0] + 5 * [2.0], 0.97)],
    ids=["one-noisy", "two-quiet-ones-compared", "noisy-against-quiet"],
)
def test_pooling_unequal_variances_costs_what_the_docstring_says(
    deviations: list[float], documented: float | None
) -> None:
    """Variances that differ by a factor of 4. Two quiet ones, as twin and baseline, are safe."""
    rate = coverage_of_difference(noise(1, deviations))
    if documented is None:
        assert rate > CONFIDENCE
    else:
        assert within(rate, documented), rate


@pytest.mark.parametrize(("shared", "documented"), [(0.5, 0.90), (0.75, 0.85)])
def test_pooling_runs_that_have_not_parted_costs_what_the_docstring_says(
    shared: float, documented: float
) -> None:
    """All but b and c have a common error, these two have another, ``shared`` of the variance."""
    generator = np.random.default_rng(2)
    group = np.array([0, 1, 1] + 5 * [0])
    errors = generator.standard_normal((TRIALS, 2, SEEDS))[:, group]
    tables = math.sqrt(shared) * errors + math.sqrt(1 - shared) * noise(3)
    rate = coverage_of_difference(tables)
    assert within(rate, documented), rate


def shares(
    lost: float, seed_effect: float, *, of_these_seeds: bool, deviation: float = 0.1
) -> tuple[float, float]:
    """(coverage, median error) of the share of b's mean of 1 that a misses."""
    generator = np.random.default_rng(4)
    covered, errors = 0, []
    for _ in range(TRIALS):
        common = seed_effect * generator.standard_normal(SEEDS)
        mean = np.array([1 - lost] + 7 * [1.0])[:, None] + common
        table = mean + deviation * generator.standard_normal((8, SEEDS))
        value, low, high = Blocks(table, NAMES).share("b", "a", "b")
        truth = lost / (1 + common.mean()) if of_these_seeds else lost
        covered += low <= truth <= high
        errors.append(value - truth)
    return covered / TRIALS, float(np.median(errors))


@pytest.mark.parametrize("lost", [0.0, 0.1, 0.5, 2.0])
def test_the_share_of_a_measured_whole_is_covered_exactly(lost: float) -> None:
    """With a seed effect of twice the residual deviation; the estimate is median-unbiased."""
    rate, error = shares(lost, 0.2, of_these_seeds=True)
    assert within(rate, CONFIDENCE), rate
    # The median of n normal values has a standard error of 1.25 sigma / sqrt(n).
    sigma = 0.1 * math.sqrt((1 + (1 - lost) ** 2) / SEEDS)
    assert abs(error) < SIGMAS * 1.25 * sigma / math.sqrt(TRIALS)


def test_a_share_of_all_seeds_that_there_are_is_covered_as_the_docstring_says() -> None:
    for lost, documented in ((0.1, 0.95), (0.5, 0.87)):
        rate, _ = shares(lost, 0.2, of_these_seeds=False)
        assert within(rate, documented), (lost, rate)


def test_a_share_of_a_whole_that_may_be_nothing_has_no_end() -> None:
    noise = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    lost = np.array([[1.0], [0.5], [1.0]])
    clear, hidden = Blocks(lost + 0.01 * noise, NAMES[:3]), Blocks(lost + noise, NAMES[:3])
    value, low, high = clear.share("a", "b", "a")
    assert value == pytest.approx(0.5)
    assert 0.4 < low < value < high < 0.6
    assert hidden.share("a", "b", "a")[1:] == (-math.inf, math.inf)
    nothing = Blocks(np.zeros((3, 4)), NAMES[:3])
    assert math.isnan(nothing.share("a", "b", "a")[0])


def test_a_share_without_any_spread_is_a_number() -> None:
    table = np.tile(np.array([[1.0], [0.25], [1.0]]), 3)
    assert Blocks(table, NAMES[:3]).share("a", "b", "a") == (0.75, 0.75, 0.75)
    assert Blocks(table, NAMES[:3]).share("c", "b", "a") == (0.75, 0.75, 0.75)


def test_one_seed_knows_no_spread_and_says_so() -> None:
    one = Blocks(np.array([[1.0], [0.5], [1.0]]), NAMES[:3])
    assert math.isnan(one.residual_deviation)
    assert one.difference("a", "b") == (0.5, -math.inf, math.inf)
    assert one.share("a", "b", "a") == (0.5, -math.inf, math.inf)
    assert one.half_width(seeds=50) == math.inf


def test_a_figure_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="would spoil the intervals of all others"):
        Blocks(np.array([[1.0, math.nan], [1.0, 1.0]]), NAMES[:2])


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 4.0])
def test_the_seeds_needed_are_the_fewest(distance: float) -> None:
    """Compared with trying all numbers one after the other."""
    blocks = Blocks(noise(5)[0], NAMES)
    widths = {n: blocks.half_width(n) for n in range(2, 60)}
    assert list(widths.values()) == sorted(widths.values(), reverse=True)
    want = min(n for n, width in widths.items() if width <= distance)
    assert seeds_needed(lambda n: blocks.half_width(n) <= distance) == want


def test_seeds_beyond_the_most_are_unknown() -> None:
    assert seeds_needed(lambda n: n >= MOST_SEEDS) == MOST_SEEDS
    assert seeds_needed(lambda n: n > MOST_SEEDS) is None
    assert seeds_needed(lambda _: True) == 2


def test_seeds_of_a_share_would_decide_and_one_less_would_not() -> None:
    """With the same means and spread: the interval that so many seeds would have."""
    blocks = Blocks(1 + 0.2 * noise(6)[0] / SEED_EFFECT, NAMES)

    def decides(seeds: int) -> bool:
        return blocks.share("b", "a", "b", seeds)[2] <= blocks.share("b", "a", "b")[0] + 0.1

    needed = seeds_needed(decides)
    assert needed is not None
    assert needed > SEEDS
    assert decides(needed)
    assert not decides(needed - 1)
