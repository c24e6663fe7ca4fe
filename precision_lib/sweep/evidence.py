"""Training-level evidence: does the precision of a component change what PPO learns?

The hazard. Two runs of one precision end at different rewards, too: PPO amplifies a difference in
the last digit into another run. So every figure is paired by seed with the FP32 baseline, has an
interval over seeds, and stands beside the *twin*: the baseline again, started one FP32 rounding
away. What cannot be told from the twin is not precision.

The damage that decides is ``objective_gain_lost``: the share of the baseline's gain in what PPO
maximises, FP32 reward less kl_coefficient x FP32 KL to the reference, that a configuration misses.
"""

import numpy as np

from precision_lib.forensics.hypotheses import IN_SWEEPS
from precision_lib.matrix import TWIN
from precision_lib.record.sweep import TrainingEvidence
from precision_lib.sweep.blocks import Blocks
from precision_lib.sweep.cells import (
    KL_PATH,
    LIMIT,
    MEANING,
    OBJECTIVE,
    Runs,
    resolution,
    tables,
    training_cell,
)
from precision_lib.sweep.hypotheses import training_verdict
from precision_lib.sweep.plan import REFERENCE_RUN

PURE = "bf16_pure"


class TooFewRunsError(ValueError):
    """There is nothing to compare, or nothing to compare it with; the message says what lacks."""


def weigh(runs: Runs) -> TrainingEvidence:
    """All training-level evidence of a sweep.

    Args:
        runs: (configuration, seed) to a run that has ended; the baseline and its twin among them.

    Raises:
        TooFewRunsError: there is no seed with every configuration, no baseline or twin, or one of
            these two has failed: where FP32 itself fails, no failure is one of precision.

    Where the baseline itself has gained nothing, nothing can be lost: ``objective_gain_lost`` is
    left out, and nothing is decided by it.
    """
    names = tuple(dict.fromkeys(name for name, _ in runs))
    all_seeds = sorted({seed for _, seed in runs})
    seeds = tuple(s for s in all_seeds if all((name, s) in runs for name in names))
    for needed in (REFERENCE_RUN.name, TWIN.name):
        _check(needed, runs, names, seeds)
    whole = tuple(n for n in names if all(runs[n, s].is_whole for s in seeds))
    figures = tables(runs, whole, seeds)
    cells = {n: training_cell(n, runs, seeds, figures) for n in names if n != REFERENCE_RUN.name}
    return TrainingEvidence(
        seeds=seeds,
        limit=LIMIT,
        meaning=MEANING,
        cells=tuple(cells.values()),
        hypotheses=tuple(training_verdict(h, cells, figures[OBJECTIVE]) for h in IN_SWEEPS),
        chaos={metric: _chaos(metric, b) for metric, b in figures.items() if TWIN.name in b.names},
        baseline_gain=figures[OBJECTIVE].mean(REFERENCE_RUN.name),
        deviations={m: b.residual_deviation if b.degrees else None for m, b in figures.items()},
        resolution=resolution(figures[OBJECTIVE]),
        exercised={h: _exercised(h, runs, seeds) for h in IN_SWEEPS},
    )


def _exercised(hypothesis: str, runs: Runs, seeds: tuple[int, ...]) -> float | None:
    declared = IN_SWEEPS[hypothesis]
    damages = [runs[PURE, s].damage[declared.in_training] for s in seeds if (PURE, s) in runs]
    steps = np.concatenate([*damages, np.zeros(0)])
    steps = steps[np.isfinite(steps)]
    return float((steps > declared.decision.limit).mean()) if len(steps) else None


def _check(needed: str, runs: Runs, names: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    if needed not in names or not seeds:
        raise TooFewRunsError(
            f"no seed has an ended run of {needed} and of every other configuration; run the "
            "sweep again to finish it"
        )
    for seed in seeds:
        run = runs[needed, seed]
        if not run.is_whole:
            raise TooFewRunsError(
                f"{needed} has nothing to compare with at seed {seed}: {run.summary.status} "
                f"({run.summary.reason or 'without finite figures'}); where FP32 itself fails, "
                "nothing can be said of precision: change the settings"
            )


def _chaos(metric: str, blocks: Blocks) -> float:
    apart = blocks.table[blocks.names.index(TWIN.name)]
    if metric != KL_PATH:  # a distance from the baseline already
        apart = apart - blocks.table[blocks.names.index(REFERENCE_RUN.name)]
    return float(np.sqrt((apart**2).mean()))
