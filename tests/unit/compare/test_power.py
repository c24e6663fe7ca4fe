"""The smallest regression that is found: the promise of 90 %, kept in simulated runs.

The hazard. A power that was computed with the formula that set the limit agrees with it and with
nothing else; so runs are drawn, judged by the gate's own limit, and counted.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from precision_lib.compare.directions import Direction, direction
from precision_lib.compare.margins import is_beyond, margin
from precision_lib.compare.power import POWER, smallest_regression
from precision_lib.forensics.statistics import Metric, estimate, resample

RATIO = direction("H1", "log_ratio_nsr")
#: Simulated pairs of runs; a share of 0.9 is then known to 0.015 (one standard error).
RUNS = 400


def run(generator: np.random.Generator, clusters: int, scale: float) -> Metric:
    """An RMS of ``clusters`` prompts of 64 errors each, with its interval."""
    errors = generator.normal(size=(clusters, 64)) * np.exp(
        generator.normal(size=(clusters, 1)) / 4
    )
    sums = {"error2": ((scale * errors) ** 2).sum(1), "n": np.full(clusters, 64.0)}
    resampling = resample(np.arange(clusters), seed=0, resamples=400)
    return estimate(
        sums, lambda t: np.sqrt(t["error2"] / t["n"]), resampling, n=64 * clusters, unit=""
    )


@pytest.mark.parametrize("clusters", [8, 32])
@pytest.mark.parametrize("comparisons", [1, 278])
def test_such_a_regression_is_found_nine_times_out_of_ten(clusters: int, comparisons: int) -> None:
    generator = np.random.default_rng(clusters + comparisons)
    typical = [run(generator, clusters, 1.0) for _ in range(50)]
    found = [smallest_regression(m, RATIO, comparisons) / m.value for m in typical]
    factor = float(np.median(found))
    caught = 0
    for _ in range(RUNS):
        before, after = run(generator, clusters, 1.0), run(generator, clusters, factor)
        limits = margin(before, after, RATIO, comparisons)
        caught += is_beyond(limits.after, limits.limit, RATIO.worse)
    error = math.sqrt(POWER * (1 - POWER) / RUNS)
    assert abs(caught / RUNS - POWER) < 4.5 * error, caught / RUNS


def test_a_regression_of_nothing_is_not_found_nine_times_out_of_ten() -> None:
    """The simulation above can fail: without a regression next to nothing is found."""
    generator = np.random.default_rng(0)
    caught = 0
    for _ in range(RUNS):
        limits = margin(run(generator, 8, 1.0), run(generator, 8, 1.0), RATIO, 278)
        caught += is_beyond(limits.after, limits.limit, RATIO.worse)
    assert caught <= 1


METRIC = Metric(0.5, 0.4, 0.6, 100, "", 12)


@pytest.mark.parametrize(
    ("how", "worse"),
    [
        (RATIO, 1),
        (direction("H1", "log_ratio_near_zero_frac"), 1),
        (direction("H2", "reward_kendall_tau"), -1),
        (direction("H3", "value_critical_magnitude"), -1),
        (direction("H4", "drift_nats_per_1000_tokens"), 1),
    ],
)
def test_it_lies_beyond_the_limit_on_the_worse_side(how: Direction, worse: int) -> None:
    limit = margin(METRIC, METRIC, how, 278, floor=0.01).limit
    found = smallest_regression(METRIC, how, 278, floor=0.01)
    assert is_beyond(found, limit, worse)
    assert is_beyond(limit, METRIC.value, worse)


def test_a_step_has_to_double_twice() -> None:
    point = replace(METRIC, low=0.5, high=0.5)
    assert smallest_regression(point, direction("H2", "reward_resolution_median"), 278) == 2.0


def test_of_a_share_that_is_zero_by_construction_one_element_is_enough() -> None:
    nothing = replace(METRIC, value=0.0, low=0.0, high=0.0)
    assert smallest_regression(nothing, direction("H1", "k3_negative_frac"), 278) == 1 / 100


@pytest.mark.parametrize("how", [direction("H1", "batch_variance"), RATIO])
def test_where_nothing_varied_and_nothing_is_counted_the_floor_alone_is_allowed(
    how: Direction,
) -> None:
    """A batch variance of 0 is that of a CPU, and has no interval."""
    nothing = replace(METRIC, value=0.0, low=0.0, high=0.0, unit="RMS error / RMS signal")
    limit = margin(nothing, nothing, how, 278, floor=2**-4).limit
    assert smallest_regression(nothing, how, 278, floor=2**-4) == limit == 2**-4


def test_the_floor_of_a_share_comes_on_top_of_what_is_rare() -> None:
    nothing = replace(METRIC, value=0.0, low=0.0, high=0.0, unit="share of pairs")
    how = direction("H2", "reward_tie_frac")
    limit = margin(nothing, nothing, how, 278, floor=2.0).limit
    assert smallest_regression(nothing, how, 278, floor=2.0) > limit > 2.0
