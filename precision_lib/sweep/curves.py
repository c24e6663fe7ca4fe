"""Figures of one run that are compared between runs: what it reached, how fast, and its path.

The hazard. The last step of a run is one noisy batch, and its KL is measured with the run's own
rounding. So what was reached is measured afterwards, in FP32 and alike for all runs; curves are
compared over all steps; "how fast" is a level that the baseline of the same seed reached.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from precision_lib.forensics.hypotheses import IN_SWEEPS
from precision_lib.metrics.former_names import figure
from precision_lib.training.failures import COMPLETED
from precision_lib.training.summary import WINDOW, RunSummary

Array = NDArray[np.float64]
#: Share of the baseline's gain at which "steps to reward" is taken.
HALF_WAY = 0.5


@dataclass(frozen=True)
class RunCurves:
    """A run, as the evidence needs it.

    Attributes:
        summary: how it ended. rewards, kls: [steps] mean score and mean KL per sequence, as the
            run itself saw them. damage: figure that stands for the damage of a
            hypothesis to its value in each step.
    """

    summary: RunSummary
    rewards: Array
    kls: Array
    damage: Mapping[str, Array] = field(default_factory=dict)

    @property
    def objective_gain(self) -> float:
        """What PPO maximises, gained: FP32 reward less kl_coefficient x FP32 KL per sequence.

        The coefficient is the one that the run began with, also where an adaptive one has moved.
        NaN where the run left no finite weights to evaluate.
        """
        if not self.summary.evaluation:
            return float("nan")
        before, after = (self.summary.evaluation[k] for k in ("initial", "final"))
        price = float(self.summary.identity["settings"]["kl_coefficient"])
        reward, kl = (  # a figure that is not finite is its name in a summary: "nan", "inf"
            float(after[name]) - float(before[name]) for name in ("reward_mean", "kl_per_sequence")
        )
        return reward - price * kl

    @property
    def is_whole(self) -> bool:
        """It came to its end, with figures that can be compared."""
        completed = self.summary.status == COMPLETED
        return completed and math.isfinite(self.objective_gain) and len(self.rewards) > 0

    def evaluated(self, name: str) -> float:
        """A figure of the final FP32 evaluation; NaN where there is none."""
        return float(self.summary.evaluation.get("final", {}).get(name, "nan"))


def run_curves(summary: RunSummary, lines: Sequence[Mapping[str, object]]) -> RunCurves:
    """Curves of a run from its summary and its step lines; "nan" and "inf" count as NaN."""
    rewards, kls = (_column(lines, n) for n in ("reward_mean", "kl_sequence_mean"))
    damage = {h.in_training: _column(lines, h.in_training) for h in IN_SWEEPS.values()}
    return RunCurves(summary, rewards, kls, damage)


def _column(lines: Sequence[Mapping[str, object]], name: str) -> Array:
    values = [x if isinstance(x := figure(line, name), int | float) else np.nan for line in lines]
    return np.array(values, dtype=np.float64)


def smoothed(curve: Array) -> Array:
    """Mean of each step and the up to WINDOW - 1 steps before it; NaN where one of them is."""
    windows = (curve[max(0, end - WINDOW) : end] for end in range(1, len(curve) + 1))
    return np.array([window.mean() for window in windows])


def area_between(curve: Array, baseline: Array) -> float:
    """Mean over the steps that both have of curve - baseline, in its unit; NaN for none."""
    steps = min(len(curve), len(baseline))
    return float((curve[:steps] - baseline[:steps]).mean()) if steps else float("nan")


def path_distance(curve: Array, baseline: Array) -> float:
    """Mean over the steps that both have of |curve - baseline|, both smoothed; NaN for none."""
    steps = min(len(curve), len(baseline))
    apart = np.abs(smoothed(curve[:steps]) - smoothed(baseline[:steps]))
    return float(apart.mean()) if steps else float("nan")


def steps_to_level(curve: Array, level: float) -> int | None:
    """Steps after which the smoothed curve, over a whole window, first is at ``level`` or above.

    None where that never happens, for a curve shorter than a window, and for a level of NaN.
    """
    reached = np.flatnonzero(smoothed(curve)[WINDOW - 1 :] >= level)
    return int(reached[0]) + WINDOW if len(reached) else None


def half_way_level(baseline: Array) -> float:
    """Reward half-way between the baseline's first whole window and its last.

    NaN where it never rose, and for a curve that is no longer than a window.
    """
    if len(baseline) <= WINDOW:
        return float("nan")
    first, last = smoothed(baseline)[[WINDOW - 1, -1]]
    return float(first + HALF_WAY * (last - first)) if last > first else float("nan")
