"""What a sweep of its size can tell, and whether its runs were where the hypotheses speak of."""

import math

import numpy as np
import pytest

from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.sweep.blocks import Blocks
from precision_lib.sweep.cells import LIMIT, POWER, gain_share, resolution
from precision_lib.sweep.curves import run_curves
from precision_lib.sweep.evidence import weigh
from precision_lib.sweep.plan import REFERENCE_RUN
from tests.unit.sweep_runs import NAMES, STEPS_DONE, a_cell, lines_of, ramp, summary_of

GAIN, SPREAD = 2.0, 0.2


def simulated(generator: np.random.Generator, seeds: int, lost: float) -> Blocks:
    """Gains of all configurations, of which bf16_pure loses a share."""
    table = GAIN + SPREAD * generator.standard_normal((len(NAMES), seeds))
    table[NAMES.index("bf16_pure")] -= lost * GAIN
    return Blocks(table, NAMES)


@pytest.mark.parametrize("seeds", [3, 8])
def test_the_smallest_loss_is_found_as_often_as_promised(seeds: int) -> None:
    generator, sweeps = np.random.default_rng(0), 1500
    width = simulated(generator, 400, 0.0)  # the spread, known almost exactly
    smallest = LIMIT + width.reach(POWER, seeds) / GAIN
    found = 0
    for _ in range(sweeps):
        share = gain_share(simulated(generator, seeds, smallest), REFERENCE_RUN.name, "bf16_pure")
        assert share is not None
        found += share.low > LIMIT
    # Student's noncentral t and the measured denominator lower the power by a few per cent.
    error = math.sqrt(POWER * (1 - POWER) / sweeps)
    assert POWER - 0.1 - 4.5 * error < found / sweeps < POWER + 4.5 * error


def test_more_seeds_find_less_and_one_seed_says_nothing() -> None:
    generator = np.random.default_rng(1)
    few, many = (resolution(simulated(generator, seeds, 0.0)) for seeds in (3, 30))
    assert few.smallest_loss and many.smallest_loss  # noqa: PT018
    assert few.seeds_for_no_loss and many.seeds_for_no_loss  # noqa: PT018
    assert few.smallest_loss > many.smallest_loss > LIMIT
    assert abs(few.seeds_for_no_loss - many.seeds_for_no_loss) < many.seeds_for_no_loss
    alone = resolution(simulated(generator, 1, 0.0))
    assert alone.smallest_loss is None
    assert alone.seeds_for_no_loss is None


def test_a_baseline_without_gain_has_no_resolution() -> None:
    table = simulated(np.random.default_rng(2), 4, 0.0)
    assert resolution(Blocks(table.table - 2 * GAIN, NAMES)).smallest_loss is None


@pytest.mark.parametrize("beyond", [0, 5, STEPS_DONE])
def test_exercised_counts_the_steps_above_the_main_jobs_limit(beyond: int) -> None:
    decision = DECISIONS["H1"]
    lines = [
        line | {decision.metric: 2 * decision.limit if i < beyond else 0.5 * decision.limit}
        for i, line in enumerate(lines_of(ramp(1.0)))
    ]
    runs = {(n, s): run_curves(summary_of(a_cell(n, s)), lines) for n in NAMES for s in (0, 1)}
    exercised = weigh(runs).exercised
    assert exercised["H1"] == beyond / STEPS_DONE
    assert exercised["H4"] is None, "no step has the metric"
