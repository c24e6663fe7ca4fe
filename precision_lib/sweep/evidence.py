"""Training-level evidence: does the precision of a component change what PPO learns?

The hazard. Two runs of different precision end at different rewards, and so do two runs of the same
precision: PPO amplifies a difference in the last digit into another run. A sweep that shows one
curve below another has shown that there are two curves. So every figure is paired by seed with the
FP32 baseline, has an interval over seeds, and stands beside the *twin*: the baseline again, started
one FP32 rounding away. What cannot be told from the twin is not precision.

The damage that decides is ``objective_gain_lost``: the share of the baseline's gain in what PPO
maximises, FP32 reward less kl_coefficient x FP32 KL to the reference, that a configuration misses.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import (
    DECISIONS,
    HEALTHY,
    IMPAIRED,
    INCONCLUSIVE,
    PARTLY,
    REFUTED,
    SUPPORTED,
)
from precision_lib.matrix import TWIN
from precision_lib.sweep.blocks import Blocks
from precision_lib.sweep.curves import (
    RunCurves,
    area_between,
    half_way_level,
    path_distance,
    steps_to_level,
)
from precision_lib.sweep.plan import BASELINE
from precision_lib.training.failures import COMPLETED

#: Impaired: a tenth of what training gains is lost. Chosen before anything was measured.
LIMIT = 0.1
MEANING = (
    "a tenth of what FP32 training gains in its objective (reward less the price of the KL) is lost"
)
#: Of the interval that has to hold 0 for the twin: one false alarm in ten thousand sweeps.
CONTROL_CONFIDENCE = 0.9999
DAMAGE, OBJECTIVE = "objective_gain_lost", "objective_difference"
Runs = Mapping[tuple[str, int], RunCurves]


@dataclass(frozen=True)
class TrainingCell:
    """A configuration over all seeds, against the baseline.

    Attributes:
        verdict: healthy, impaired or inconclusive.
        metrics: name to value, 95 % interval over seeds, n seeds, unit.
        statuses: how the runs ended, by seed. seeds_needed: to decide; None where unknown.
    """

    configuration: str
    verdict: str
    metrics: dict[str, Metric]
    statuses: dict[int, str]
    seeds_needed: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainingVerdict:
    """What the sweep says of a hypothesis.

    Attributes:
        healed: objective_gain_lost of bf16_pure less that of the promoted configuration.
        control: twin against baseline, which must not differ.
        seeds_needed: of the cell that is undecided; None where all are decided, or unknown.
    """

    hypothesis: str
    title: str
    verdict: str
    healed: Metric | None
    control: dict[str, Any]
    explanation: str
    seeds_needed: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


#: Name to unit; each is a table configurations x seeds, and a cell is its difference to FP32.
UNITS = {
    DAMAGE: "share of the baseline's gain",
    OBJECTIVE: "reward units, FP32 evaluation",
    "reward_difference": "reward units, FP32 evaluation",
    "kl_difference": "nats per sequence, FP32 evaluation",
    "reward_area_difference": "reward units, mean over steps",
    "kl_path_distance": "nats per sequence, mean over steps",
    "steps_to_reward_difference": "steps to half of the baseline's gain",
}


@dataclass(frozen=True)
class Evidence:
    """Cells, verdicts, and the tables that they come from.

    Attributes:
        seeds: that every configuration has an ended run for.
        cells: by configuration. verdicts: one per hypothesis.
        chaos: metric to the RMS over seeds of twin less baseline.
        baseline_gain: mean gain of the objective, reward units.
        deviations: metric to the residual deviation between runs, seeds and configurations apart.
    """

    seeds: tuple[int, ...]
    cells: dict[str, TrainingCell]
    verdicts: tuple[TrainingVerdict, ...]
    chaos: dict[str, float]
    baseline_gain: float
    deviations: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "seeds": list(self.seeds),
            "limit": LIMIT,
            "meaning": MEANING,
            "baseline_gain": self.baseline_gain,
            "chaos": self.chaos,
            "deviations": self.deviations,
            "cells": [cell.as_json() for cell in self.cells.values()],
            "hypotheses": [verdict.as_json() for verdict in self.verdicts],
        }


class TooFewRunsError(ValueError):
    """No seed has an ended run of every configuration: nothing can be compared."""


def weigh(runs: Runs) -> Evidence:
    """All training-level evidence of a sweep.

    Args:
        runs: (configuration, seed) to a run that has ended; the baseline and its twin among them.

    Raises:
        TooFewRunsError: there is no seed with every configuration, or no baseline or twin.

    Where the baseline itself has gained nothing, nothing can be lost: ``objective_gain_lost`` is
    left out, and nothing is decided by it.
    """
    names = tuple(dict.fromkeys(name for name, _ in runs))
    all_seeds = sorted({seed for _, seed in runs})
    seeds = tuple(s for s in all_seeds if all((name, s) in runs for name in names))
    for needed in (BASELINE.name, TWIN.name):
        if needed not in names or not seeds:
            raise TooFewRunsError(
                f"no seed has an ended run of {needed} and of every other configuration; run the "
                "sweep again to finish it"
            )
    gains = [runs[BASELINE.name, s].objective_gain for s in seeds]
    gain = float(np.mean(gains))
    whole = tuple(n for n in names if all(_finite(runs[n, s]) for s in seeds))
    measured = [m for m in UNITS if m != DAMAGE or gain > 0]
    tables = {metric: _table(metric, runs, whole, seeds, gain) for metric in measured}
    cells = {n: _cell(n, runs, seeds, tables) for n in names if n != BASELINE.name}
    return Evidence(
        seeds=seeds,
        cells=cells,
        verdicts=tuple(_verdict(h, cells, tables) for h in DECISIONS),
        chaos={metric: _chaos(blocks) for metric, blocks in tables.items()},
        baseline_gain=gain,
        deviations={m: b.residual_deviation for m, b in tables.items()},
    )


def _finite(run: RunCurves) -> bool:
    return math.isfinite(run.objective_gain) and len(run.rewards) > 0


def _table(
    metric: str, runs: Runs, names: tuple[str, ...], seeds: tuple[int, ...], gain: float
) -> Blocks:
    """[C, S] of a figure, the baseline's own row included."""
    rows = [
        [_figure(metric, runs[n, s], runs[BASELINE.name, s], gain) for s in seeds] for n in names
    ]
    return Blocks(np.array(rows, dtype=np.float64), names)


def _figure(metric: str, run: RunCurves, baseline: RunCurves, gain: float) -> float:
    if metric == DAMAGE:
        return -run.objective_gain / gain
    if metric == OBJECTIVE:
        return run.objective_gain
    if metric == "reward_difference":
        return run.evaluated("reward_mean")
    if metric == "kl_difference":
        return run.evaluated("kl_per_sequence")
    if metric == "reward_area_difference":
        return area_between(run.rewards, baseline.rewards)
    if metric == "kl_path_distance":
        return path_distance(run.kls, baseline.kls)
    steps = steps_to_level(run.rewards, half_way_level(baseline.rewards))
    return float(len(run.rewards) if steps is None else steps)  # not reached: at least so many


def _chaos(blocks: Blocks) -> float:
    i, j = blocks.names.index(TWIN.name), blocks.names.index(BASELINE.name)
    return float(np.sqrt(((blocks.table[i] - blocks.table[j]) ** 2).mean()))


def _metric(blocks: Blocks, first: str, second: str, unit: str) -> Metric:
    value, low, high = blocks.difference(first, second)
    return Metric(value, low, high, blocks.seeds, unit)


def _cell(name: str, runs: Runs, seeds: tuple[int, ...], tables: dict[str, Blocks]) -> TrainingCell:
    statuses = {s: runs[name, s].summary.status for s in seeds}
    failed = sum(status != COMPLETED for status in statuses.values())
    if name not in tables[OBJECTIVE].names:  # it left no finite weights for some seed
        return TrainingCell(name, IMPAIRED, {}, statuses, None)
    metrics = {m: _metric(b, name, BASELINE.name, UNITS[m]) for m, b in tables.items()}
    if DAMAGE not in metrics:
        return TrainingCell(name, IMPAIRED if failed else INCONCLUSIVE, metrics, statuses, None)
    blocks, damage = tables[DAMAGE], metrics[DAMAGE]
    verdict = INCONCLUSIVE
    if failed or damage.low > LIMIT:
        verdict = IMPAIRED
    elif damage.high <= LIMIT:
        verdict = HEALTHY
    needed = blocks.seeds_needed(abs(damage.value - LIMIT)) if verdict == INCONCLUSIVE else None
    return TrainingCell(name, verdict, metrics, statuses, needed)


def _verdict(
    hypothesis: str, cells: dict[str, TrainingCell], tables: dict[str, Blocks]
) -> TrainingVerdict:
    damage = tables.get(DAMAGE)
    decision = DECISIONS[hypothesis]
    pure, promoted, demoted = (
        cells.get(name) for name in ("bf16_pure", decision.promoted, decision.demoted)
    )
    control = _control(tables[OBJECTIVE])
    if pure is None or promoted is None:
        return TrainingVerdict(
            hypothesis,
            decision.title,
            INCONCLUSIVE,
            None,
            control,
            f"bf16_pure and {decision.promoted} were not both trained",
            None,
        )
    healed = None
    if damage and {pure.configuration, promoted.configuration} <= set(damage.names):
        healed = _metric(damage, pure.configuration, promoted.configuration, UNITS[DAMAGE])
    verdict = _word(pure, promoted, demoted, healed, control)
    undecided = [c for c in (pure, promoted, demoted) if c and c.verdict == INCONCLUSIVE]
    needed = [c.seeds_needed for c in undecided]
    return TrainingVerdict(
        hypothesis,
        decision.title,
        verdict,
        healed,
        control,
        _explanation(pure, promoted, demoted, healed),
        max(n for n in needed if n) if verdict == INCONCLUSIVE and any(needed) else None,
    )


def _control(objective: Blocks) -> dict[str, Any]:
    """Twin against baseline: the interval of their difference has to hold 0.

    At :data:`CONTROL_CONFIDENCE`, because this one must not raise a false alarm.
    """
    if not {TWIN.name, BASELINE.name} <= set(objective.names):
        return {"twin": TWIN.name, "is_null": False}
    value, low, high = objective.difference(TWIN.name, BASELINE.name, CONTROL_CONFIDENCE)
    return {
        "twin": TWIN.name,
        "twin_objective_difference": {"value": value, "low": low, "high": high},
        "is_null": low <= 0 <= high,
    }


def _word(
    pure: TrainingCell,
    promoted: TrainingCell,
    demoted: TrainingCell | None,
    healed: Metric | None,
    control: dict[str, Any],
) -> str:
    """Verdict from promotion and, where it was trained, demotion; as for the main job.

    Where nothing is impaired there is nothing to heal: refuted.
    """
    looked_at = [c.verdict for c in (pure, promoted, demoted) if c is not None]
    harms = demoted is not None and demoted.verdict == IMPAIRED
    if not control["is_null"]:
        return INCONCLUSIVE
    if pure.verdict == HEALTHY and not harms and (demoted is None or demoted.verdict == HEALTHY):
        return REFUTED
    if INCONCLUSIVE in looked_at:
        return INCONCLUSIVE
    heals = (
        pure.verdict == IMPAIRED
        and promoted.verdict == HEALTHY
        and (healed is None or healed.low > 0)
    )
    if heals and harms:
        return SUPPORTED
    return PARTLY if heals or harms else REFUTED


def _explanation(
    pure: TrainingCell,
    promoted: TrainingCell,
    demoted: TrainingCell | None,
    healed: Metric | None,
) -> str:
    parts = [f"{c.configuration} {_lost(c)}" for c in (pure, promoted, demoted) if c is not None]
    text = "; ".join(parts)
    if healed is not None:
        text += (
            f". The promotion takes back {healed.value:.0%} [{healed.low:.0%}, {healed.high:.0%}] "
            "of the baseline's gain"
        )
    return text + "."


def _lost(cell: TrainingCell) -> str:
    failed = sum(status != COMPLETED for status in cell.statuses.values())
    if OBJECTIVE not in cell.metrics:
        return f"failed for {failed} of {len(cell.statuses)} seeds"
    if DAMAGE not in cell.metrics:
        return "has nothing to lose: the baseline has gained nothing"
    m = cell.metrics[DAMAGE]
    ended = f", failed for {failed} of {len(cell.statuses)} seeds" if failed else ""
    return f"loses {m.value:.0%} [{m.low:.0%}, {m.high:.0%}] of the gain{ended} ({cell.verdict})"
