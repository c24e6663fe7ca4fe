"""Pictures of a sweep: what PPO learned in each configuration, and how much of it is precision.

Every curve has the band of its seeds; the FP32 baseline is black.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lib.metrics.former_names import figure
from precision_lib.record.sweep import Run, Sweep, TrainingCell, TrainingEvidence
from precision_lib.reporting.plots.appearance import (
    BASELINE,
    LIMIT_COLOUR,
    appearance,
    legend_below,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.picture import NothingToDrawError, Picture, Table

Array = NDArray[np.float64]

#: Steps over which a curve is averaged before it is drawn.
SMOOTH = 10
CURVES = (
    ("reward_mean", "reward (log odds)"),
    ("kl_sequence_mean", "KL (nats per sequence)"),
    ("entropy_mean", "entropy (nats per token)"),
    ("gae_rms_error", "advantage error (RMS error / RMS)"),
)


def pictures(sweep: Sweep) -> list[Picture]:
    """All pictures of a sweep.

    Raises:
        NothingToDrawError: no run of the record has ended, so that there is nothing to draw.
    """
    runs = [run for run in sweep.runs if run.curves]
    if not runs:
        raise NothingToDrawError("no run of this sweep has ended: there is nothing to draw yet")
    drawn = [_curves(runs)]
    if sweep.evidence and any(_lost(c) for c in sweep.evidence.cells):
        drawn.append(_gain_lost(sweep.evidence))
    return drawn


def names_of(runs: Sequence[Run]) -> list[str]:
    """Configurations in the order of the runs, the baseline first."""
    names = list(dict.fromkeys(run.configuration for run in runs))
    return sorted(names, key=lambda name: name != BASELINE)


def band(runs: Sequence[Run], name: str) -> tuple[Array, Array, Array, Array]:
    """(step, mean, lowest, highest) over runs of one configuration, smoothed; common steps only."""
    of_runs = [figure(run.curves, name) for run in runs]
    curves = [np.array([np.nan if x is None else x for x in curve]) for curve in of_runs]
    steps = min(map(len, curves))
    table: Array = np.stack([_smooth(curve[:steps]) for curve in curves])
    step: Array = np.arange(1, steps + 1, dtype=np.float64)
    mean: Array = np.asarray(table.mean(0), dtype=np.float64)
    return step, mean, table.min(0), table.max(0)


def _smooth(curve: Array) -> Array:
    """Mean of each step and up to SMOOTH - 1 steps before it, those without a value left out."""
    there = np.isfinite(curve)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, curve, 0.0))])
    count = np.concatenate([[0], np.cumsum(there)])
    end = np.arange(1, len(curve) + 1)
    start = np.maximum(end - SMOOTH, 0)
    seen = count[end] - count[start]
    return np.where(seen > 0, (total[end] - total[start]) / np.maximum(seen, 1), np.nan)


def _curves(runs: Sequence[Run]) -> Picture:
    names = names_of(runs)
    bands = {
        name: {key: band([r for r in runs if r.configuration == name], key) for key, _ in CURVES}
        for name in names
    }
    rows = tuple((name, *(_last(*bands[name][key][1:]) for key, _ in CURVES)) for name in names)
    seeds = len({run.seed for run in runs})
    many = f"{seeds} seed{'s' * (seeds > 1)}"
    return Picture(
        "ppo_curves",
        _draw_curves(bands),
        f"Mean over {SMOOTH} steps and {many}; band: from the lowest seed to the highest. Reward "
        "in log odds, KL in nats per sequence, entropy in nats per token, advantage error as RMS "
        "error over RMS against FP32 on the same tokens. The table has the last step.",
        "Four panels over the PPO step: reward, KL, entropy and advantage error of every "
        "configuration with bands over seeds.",
        Table(("configuration", *(f"{label} [lowest, highest]" for _, label in CURVES)), rows),
    )


def _last(mean: Array, low: Array, high: Array) -> str:
    return f"{mean[-1]:.3g} [{low[-1]:.3g}, {high[-1]:.3g}]"


@styled
def _draw_curves(bands: dict[str, dict[str, tuple[Array, Array, Array, Array]]]) -> Any:
    looks = appearance(list(bands))
    figure, axes = new_figure(6.0, 2, 2)
    for axis, (key, label) in zip(axes.flat, CURVES, strict=True):
        for name, outcome in bands.items():
            step, mean, low, high = outcome[key]
            axis.fill_between(step, low, high, color=looks[name]["color"], alpha=0.10, linewidth=0)
            axis.plot(step, mean, label=name, **looks[name])
        axis.set_xlabel("PPO step")
        axis.set_ylabel(label)
    legend_below(figure, axes.flat[0], 4)
    return figure


def _lost(cell: TrainingCell) -> tuple[float, float, float] | None:
    """Share of the gain that is lost with its interval, per cent; None where it is not finite."""
    metric = cell.metrics.get("objective_gain_lost")
    figures = (metric.value, metric.low, metric.high) if metric else ()
    if len(figures) != 3 or not np.isfinite(figures).all():
        return None
    return 100 * figures[0], 100 * figures[1], 100 * figures[2]


def _gain_lost(evidence: TrainingEvidence) -> Picture:
    losses = [(cell, lost) for cell in evidence.cells if (lost := _lost(cell))]
    rows = []
    for cell, lost in losses:
        value, low, high = (f"{figure:.0f} %" for figure in lost)
        needed = str(cell.seeds_needed or "–")
        rows.append((cell.configuration, cell.verdict, value, f"{low} to {high}", needed))
    return Picture(
        "ppo_gain_lost",
        _draw_gain_lost(losses, evidence.limit),
        "Share of FP32's gain in the objective (reward less the KL penalty, measured in FP32) that "
        "a configuration loses, %, with 95 % intervals over seeds. fp32_twin is the baseline "
        "started one rounding away: what it shows is chaos.",
        "Loss of each configuration as a point with its interval, beside zero and the limit.",
        Table(
            ("configuration", "verdict", "gain lost", "95 %", "seeds that would decide"),
            tuple(rows),
        ),
    )


@styled
def _draw_gain_lost(
    losses: Sequence[tuple[TrainingCell, tuple[float, float, float]]], limit: float
) -> Any:
    looks = appearance([cell.configuration for cell, _ in losses])
    figure, axes = new_figure(0.36 * len(losses) + 1.0)
    axis = axes[0, 0]
    for place, (cell, (value, low, high)) in enumerate(losses[::-1]):
        colour = looks[cell.configuration]["color"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot([value], [place], "o", color=colour)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axvline(100 * limit, color=LIMIT_COLOUR, linewidth=1, linestyle="--")
    axis.annotate(
        f"impaired above {limit:.0%}",
        (100 * limit, len(losses) - 0.45),
        color="#A84900",
        fontsize=8,
        xytext=(-4, 0),
        textcoords="offset points",
        horizontalalignment="right",
        backgroundcolor="white",
    )
    labels = [f"{cell.configuration}: {cell.verdict}" for cell, _ in losses[::-1]]
    axis.set_yticks(range(len(losses)), labels)
    axis.set_ylim(-0.6, len(losses) - 0.1)
    axis.set_xlabel("share of FP32's gain in the objective that is lost, %")
    axis.grid(visible=False, axis="y")
    return figure
