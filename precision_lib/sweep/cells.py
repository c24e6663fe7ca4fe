"""A configuration over all seeds against the FP32 baseline: figures, intervals, a verdict.

The hazards. A share of the baseline's gain has a baseline below the line that is measured too. One
run that failed early has figures of another size than all others, and its spread would hide what
happened to them. A level that was never reached was not reached "at the last step". So shares have
Fieller's interval, only configurations that completed every run have figures, and a figure that
does not exist for some seed is left out.

A failed run makes its configuration impaired without an interval. Were failures to strike any run
alike, whatever its formats, then baseline and twin would complete all of their runs, which is asked
for, and a given configuration would not, in at most 4/27 = 15 % of all sweeps: q^2 (1 - q) for the
chance q that all seeds of a configuration complete. Look at the seeds before you believe it.
"""

import math
from collections.abc import Mapping

import numpy as np

from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import HEALTHY, IMPAIRED, INCONCLUSIVE
from precision_lib.matrix import TWIN
from precision_lib.record.sweep import Resolution, TrainingCell
from precision_lib.sweep.blocks import Blocks, seeds_needed
from precision_lib.sweep.curves import (
    RunCurves,
    area_between,
    half_way_level,
    path_distance,
    steps_to_level,
)
from precision_lib.sweep.plan import REFERENCE_RUN

#: Impaired: a tenth of what training gains is lost. Chosen before anything was measured.
LIMIT = 0.1
MEANING = (
    "a tenth of what FP32 training gains in its objective (reward less the price of the KL) is lost"
)
#: Probability with which a sweep of the stated size decides.
POWER = 0.8
DAMAGE, OBJECTIVE = "objective_gain_lost", "objective_difference"
KL_PATH, STEPS_TO_LEVEL = "kl_path_distance", "steps_to_reward_difference"
#: Name to unit. Each but the first is a table configurations x seeds, and a cell is its difference
#: to FP32; how far a path lies from FP32's own is compared with how far the twin's does.
UNITS = {
    DAMAGE: "share of the baseline's gain",
    OBJECTIVE: "reward units, FP32 evaluation",
    "reward_difference": "reward units, FP32 evaluation",
    "kl_difference": "nats per sequence, FP32 evaluation",
    "reward_area_difference": "reward units, mean over steps",
    KL_PATH: "nats per sequence, mean over steps, beyond the twin's",
    STEPS_TO_LEVEL: "steps to half of the baseline's gain",
}
Runs = Mapping[tuple[str, int], RunCurves]


def tables(runs: Runs, names: tuple[str, ...], seeds: tuple[int, ...]) -> dict[str, Blocks]:
    """Metric to its table, of those configurations that have the figure for every seed.

    A metric is left out where what it is compared with has none.
    """
    blocks = {}
    for metric in list(UNITS)[1:]:
        figures = {
            n: [_figure(metric, runs[n, s], runs[REFERENCE_RUN.name, s]) for s in seeds]
            for n in names
        }
        if metric == KL_PATH:
            del figures[REFERENCE_RUN.name]  # 0 by its definition, and no sign of any spread
        rows = {name: row for name, row in figures.items() if np.isfinite(row).all()}
        if _compared_with(metric) in rows:
            blocks[metric] = Blocks(np.array(list(rows.values()), dtype=np.float64), tuple(rows))
    return blocks


def _compared_with(metric: str) -> str:
    return TWIN.name if metric == KL_PATH else REFERENCE_RUN.name


def _figure(metric: str, run: RunCurves, baseline: RunCurves) -> float:
    """A figure of one run; NaN where it has none."""
    if metric == OBJECTIVE:
        return run.objective_gain
    if metric == "reward_difference":
        return run.evaluated("reward_mean")
    if metric == "kl_difference":
        return run.evaluated("kl_per_sequence")
    if metric == "reward_area_difference":
        return area_between(run.rewards, baseline.rewards)
    if metric == KL_PATH:
        return path_distance(run.kls, baseline.kls)
    steps = steps_to_level(run.rewards, half_way_level(baseline.rewards))
    return math.nan if steps is None else float(steps)


def gain_share(objective: Blocks, first: str, second: str) -> Metric | None:
    """(first - second) as a share of the baseline's gain; None where that is not above 0."""
    if not objective.mean(REFERENCE_RUN.name) > 0:
        return None
    share = objective.share(first, second, REFERENCE_RUN.name)
    return Metric(*share, objective.seeds, UNITS[DAMAGE])


def resolution(objective: Blocks) -> Resolution:
    """What a sweep of this spread can tell; None where the spread or the gain is not known."""
    gain = objective.mean(REFERENCE_RUN.name)
    if not gain > 0 or not math.isfinite(objective.reach(POWER)):
        return Resolution(POWER, None, None)
    return Resolution(
        power=POWER,
        smallest_loss=LIMIT + objective.reach(POWER) / gain,
        seeds_for_no_loss=seeds_needed(lambda n: objective.reach(POWER, n) <= LIMIT * gain),
    )


def training_cell(
    name: str, runs: Runs, seeds: tuple[int, ...], figures: dict[str, Blocks]
) -> TrainingCell:
    """What happened to a configuration, from the :func:`tables`."""
    statuses = {s: runs[name, s].summary.status for s in seeds}
    objective = figures[OBJECTIVE]
    if name not in objective.names:
        return TrainingCell(name, IMPAIRED, {}, statuses, None)
    damage = gain_share(objective, REFERENCE_RUN.name, name)
    metrics = {} if damage is None else {DAMAGE: damage}
    for metric, blocks in figures.items():
        other = _compared_with(metric)
        if name in blocks.names and name != other:
            difference = blocks.difference(name, other)
            metrics[metric] = Metric(*difference, blocks.seeds, UNITS[metric])
    verdict, needed = INCONCLUSIVE, None
    if damage is not None:
        verdict = _verdict(damage.low, damage.high)
        needed = _seeds_needed(objective, name) if verdict == INCONCLUSIVE else None
    return TrainingCell(name, verdict, metrics, statuses, needed)


def _verdict(low: float, high: float) -> str:
    if low > LIMIT:
        return IMPAIRED
    return HEALTHY if high <= LIMIT else INCONCLUSIVE


def _seeds_needed(objective: Blocks, name: str) -> int | None:
    def decides(seeds: int) -> bool:
        _, low, high = objective.share(REFERENCE_RUN.name, name, REFERENCE_RUN.name, seeds)
        return _verdict(low, high) != INCONCLUSIVE

    return seeds_needed(decides)
