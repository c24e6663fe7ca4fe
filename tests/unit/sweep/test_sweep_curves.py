"""Figures of a run on curves made by hand, whole and cut short, finite and not."""

import math
from typing import Any

import numpy as np
import pytest

from precision_lib.sweep.curves import (
    RunCurves,
    area_between,
    half_way_level,
    path_distance,
    run_curves,
    smoothed,
    steps_to_level,
)
from precision_lib.training.failures import NAN_LOSS
from precision_lib.training.summary import WINDOW
from tests.unit.sweep_runs import KL_COEFFICIENT, a_cell, evaluation, lines_of, summary_of

RISING = np.arange(30.0)
CALM = np.zeros(30)


def a_run(lines: list[dict[str, Any]] | None = None, **changes: Any) -> RunCurves:
    return run_curves(summary_of(a_cell(), **changes), lines_of([1.0]) if lines is None else lines)


def test_the_objective_is_reward_less_the_price_of_the_kl() -> None:
    """From a reward of 1 and no KL to 5 and 20 nats: 4 less 20 coefficients."""
    assert a_run(evaluation=evaluation(5.0, 20.0)).objective_gain == 4 - KL_COEFFICIENT * 20


def test_a_run_that_left_no_finite_weights_gained_nothing_that_is_a_number() -> None:
    run = a_run(evaluation={}, status=NAN_LOSS)
    assert math.isnan(run.objective_gain)
    assert math.isnan(run.evaluated("reward_mean"))
    assert not run.is_whole


def test_figures_that_a_summary_spells_out_are_read_as_numbers() -> None:
    """Strict JSON has no NaN: what came back from disk is the word."""
    found = evaluation(2.0, 1.0)
    found["final"] |= {"reward_mean": "nan", "kl_per_sequence": "inf"}
    run = a_run(evaluation=found)
    assert math.isnan(run.objective_gain)
    assert run.evaluated("kl_per_sequence") == math.inf
    assert not run.is_whole


def test_a_run_is_whole_when_it_completed_with_steps_and_finite_figures() -> None:
    assert a_run().is_whole
    assert not a_run(status=NAN_LOSS).is_whole
    assert not a_run(lines=[]).is_whole


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", None])
def test_a_step_without_a_finite_figure_is_nan_in_the_curve(word: str | None) -> None:
    lines = lines_of([1.0, 2.0, 3.0])
    lines[1]["reward_mean"] = word
    run = a_run(lines)
    assert np.array_equal(run.rewards, [1.0, math.nan, 3.0], equal_nan=True)
    assert run.kls.tolist() == [0.0, 0.1, 0.2]


def test_smoothing_is_the_mean_of_a_window_that_ends_at_the_step() -> None:
    """Means of consecutive integers, exact in floating point."""
    want = [(max(0, i - WINDOW + 1) + i) / 2 for i in range(30)]
    assert smoothed(RISING).tolist() == want
    assert smoothed(np.zeros(0)).tolist() == []


def test_a_step_that_is_nan_spoils_its_own_windows_and_no_others() -> None:
    broken = RISING.copy()
    broken[5] = math.nan
    spoiled = np.flatnonzero(np.isnan(smoothed(broken)))
    assert spoiled.tolist() == list(range(5, 5 + WINDOW))


def test_the_area_is_signed_and_over_the_steps_that_both_have() -> None:
    assert area_between(RISING + 2, RISING) == 2
    assert area_between(CALM, CALM + 1) == -1
    assert area_between(RISING[:3] + 2, RISING) == 2  # a run that failed after three steps
    assert math.isnan(area_between(np.zeros(0), RISING))
    assert math.isnan(area_between(np.array([math.nan]), RISING))


def test_the_distance_of_paths_has_no_sign_and_forgets_single_steps() -> None:
    assert path_distance(CALM + 2, CALM) == path_distance(CALM, CALM + 2) == 2
    assert path_distance(RISING, RISING) == 0
    there_and_back = np.array([1.0, -1.0] * 15)
    assert path_distance(there_and_back, CALM) < 0.2 < np.abs(there_and_back).mean()
    assert path_distance(CALM[:4] + 2, CALM) == 2
    assert math.isnan(path_distance(np.zeros(0), CALM))


def test_the_area_cancels_where_the_distance_does_not() -> None:
    """Above for half of the time, below for the other: another path of the same mean."""
    other = np.repeat([3.0, -3.0], 15)
    assert area_between(other, CALM) == 0
    assert path_distance(other, CALM) > 1


def test_a_level_is_reached_by_a_whole_window() -> None:
    """A ramp's window that ends at step i (from 0) has the mean i - (WINDOW - 1) / 2."""
    level = 15.0
    first = math.ceil(level + (WINDOW - 1) / 2)
    assert steps_to_level(RISING, level) == first + 1
    spike = CALM.copy()
    spike[0] = 100.0  # its window of one step would be there at once, the whole window is not yet
    assert steps_to_level(spike, 10.0) == WINDOW
    assert steps_to_level(spike, 10.5) is None


@pytest.mark.parametrize("level", [1.0, math.nan])
def test_a_level_that_is_never_reached_has_no_step(level: float) -> None:
    assert steps_to_level(CALM, level) is None
    assert steps_to_level(np.zeros(0), level) is None


def test_a_curve_shorter_than_a_window_reaches_nothing() -> None:
    assert steps_to_level(np.full(WINDOW - 1, 6.0), 4.0) is None
    assert steps_to_level(np.full(WINDOW, 6.0), 4.0) == WINDOW


def test_half_way_lies_between_the_first_window_and_the_last() -> None:
    assert half_way_level(RISING) == RISING.mean()
    overlapping = np.append(np.zeros(WINDOW), [WINDOW] * 2)  # windows of mean 0 and 2
    assert half_way_level(overlapping) == 1


@pytest.mark.parametrize("curve", [CALM, -RISING, RISING[:WINDOW]], ids=["flat", "falls", "short"])
def test_there_is_no_half_way_where_the_baseline_never_rose(curve: np.ndarray[Any, Any]) -> None:
    """A level below the start would be "reached" at once, by every run."""
    assert math.isnan(half_way_level(curve))


def test_the_baseline_reaches_its_own_half_way_level() -> None:
    """Whenever there is one: else it would have no figure for its own level."""
    generator = np.random.default_rng(0)
    reached = 0
    for steps in (11, 12, 19, 20, 25, 100):
        for _ in range(50):
            curve = generator.standard_normal(steps) + np.linspace(0, 1, steps)
            level = half_way_level(curve)
            if not math.isnan(level):
                reached += 1
                assert steps_to_level(curve, level) is not None, (steps, curve, level)
    assert reached > 200
