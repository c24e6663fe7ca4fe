"""Pictures of a sweep: what PPO learned in each configuration, and how much of it is precision.

The hazard. A mean curve without its seeds shows a difference where there is none, a rainbow of
eight lines cannot be read by one man in twelve, and a figure that lost its command cannot be made
again. So every curve has the band of its seeds, colours are those of Okabe and Ito with a line
style each, and the configuration that everything is compared with is black.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lib.jsonio import write_bytes

Array = NDArray[np.float64]

#: Okabe and Ito, "Color Universal Design": told apart with every kind of colour vision.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#8C8C8C", "#F0E442")
STYLES = ("-", "--", "-.", ":")
BASELINE, TWIN = "fp32_baseline", "fp32_twin"
#: Steps over which a curve is averaged before it is drawn.
SMOOTH = 10
CURVES = (
    ("reward_mean", "reward (log odds)"),
    ("kl_sequence_mean", "KL (nats per sequence)"),
    ("entropy_mean", "entropy (nats per token)"),
    ("advantage_rms_error", "advantage error (RMS error / RMS)"),
)


def draw_sweep(record: dict[str, Any], directory: Path) -> list[Path]:
    """Draw all pictures of a sweep's record, each as PNG and SVG; the files.

    Args:
        record: as ``sweep.json`` holds it.
        directory: made if need be.

    Raises:
        ValueError: no run of the record has ended, so that there is nothing to draw.
    """
    runs = [run for run in record["runs"] if run.get("curves")]
    if not runs:
        raise ValueError("no run of this sweep has ended: there is nothing to draw yet")
    files = _save(_curves(runs), directory / "ppo_curves")
    if record["evidence"] and any(_lost(c) for c in record["evidence"]["cells"]):
        files += _save(_gain_lost(record["evidence"]), directory / "ppo_gain_lost")
    return files


def names_of(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Configurations in the order of the runs, the baseline first."""
    names = list(dict.fromkeys(run["configuration"] for run in runs))
    return sorted(names, key=lambda name: name != BASELINE)


def appearance(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name to colour and line style; the baseline is black and thicker, its twin grey."""
    looks: dict[str, dict[str, Any]] = {}
    others = 0
    for name in names:
        if name == BASELINE:
            looks[name] = {"color": "black", "linestyle": "-", "linewidth": 1.8}
        elif name == TWIN:
            looks[name] = {"color": "#8C8C8C", "linestyle": "--", "linewidth": 1.4}
        else:
            looks[name] = {
                "color": COLOURS[others % 6],
                "linestyle": STYLES[others % len(STYLES)],
                "linewidth": 1.2,
            }
            others += 1
    return looks


def band(runs: Sequence[dict[str, Any]], figure: str) -> tuple[Array, Array, Array, Array]:
    """(step, mean, lowest, highest) over runs of one configuration, smoothed; common steps only."""
    curves = [np.array([_number(x) for x in run["curves"][figure]]) for run in runs]
    steps = min(map(len, curves))
    table: Array = np.stack([_smooth(curve[:steps]) for curve in curves])
    step: Array = np.arange(1, steps + 1, dtype=np.float64)
    mean: Array = np.asarray(table.mean(0), dtype=np.float64)
    return step, mean, table.min(0), table.max(0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _smooth(curve: Array) -> Array:
    """Mean of each step and up to SMOOTH - 1 steps before it, those without a value left out."""
    there = np.isfinite(curve)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, curve, 0.0))])
    count = np.concatenate([[0], np.cumsum(there)])
    end = np.arange(1, len(curve) + 1)
    start = np.maximum(end - SMOOTH, 0)
    seen = count[end] - count[start]
    return np.where(seen > 0, (total[end] - total[start]) / np.maximum(seen, 1), np.nan)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _curves(runs: Sequence[dict[str, Any]]) -> Any:
    names = names_of(runs)
    looks = appearance(names)
    figure, axes = _figure(10, 7.2, 2, 2)
    for axis, (key, label) in zip(axes.flat, CURVES, strict=True):
        for name in names:
            step, mean, low, high = band([r for r in runs if r["configuration"] == name], key)
            axis.fill_between(step, low, high, color=looks[name]["color"], alpha=0.10, linewidth=0)
            axis.plot(step, mean, label=name, **looks[name])
        axis.set_xlabel("PPO step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25, linewidth=0.5)
    seeds = len({run["seed"] for run in runs})
    figure.suptitle(
        f"Mean over {SMOOTH} steps and {seeds} seed{'s' * (seeds > 1)}; band: from the lowest seed "
        "to the highest",
        fontsize=11,
    )
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _lost(cell: dict[str, Any]) -> dict[str, Any] | None:
    metric = cell["metrics"].get("objective_gain_lost")
    whole = metric and all(isinstance(metric[k], int | float) for k in ("value", "low", "high"))
    return metric if whole else None


def _gain_lost(evidence: dict[str, Any]) -> Any:
    cells = [cell for cell in evidence["cells"] if _lost(cell)][::-1]
    looks = appearance([c["configuration"] for c in evidence["cells"]])
    figure, axes = _figure(8, 0.45 * len(cells) + 1.6)
    axis = axes[0, 0]
    for place, cell in enumerate(cells):
        metric = _lost(cell) or {}
        value, low, high = (100 * metric[k] for k in ("value", "low", "high"))
        colour = looks[cell["configuration"]]["color"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot([value], [place], "o", color=colour)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axvline(100 * evidence["limit"], color="#D55E00", linewidth=1, linestyle="--")
    axis.annotate(
        f"impaired above {evidence['limit']:.0%}",
        (100 * evidence["limit"], len(cells) - 0.45),
        color="#D55E00",
        fontsize=8,
        xytext=(-4, 0),
        textcoords="offset points",
        horizontalalignment="right",
    )
    axis.set_yticks(range(len(cells)), [f"{c['configuration']}: {c['verdict']}" for c in cells])
    axis.set_ylim(-0.6, len(cells) - 0.1)
    axis.set_xlabel("share of FP32's gain in the objective that is lost, % [95 % over seeds]")
    axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    return figure


def _save(figure: Any, stem: Path) -> list[Path]:
    """PNG and SVG of a figure; the SVG holds text as text and no date, so that it can be diffed."""
    from io import BytesIO

    import matplotlib as mpl

    files = []
    for suffix in ("png", "svg"):
        content = BytesIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "precision-forensics"}):
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(content, format=suffix, dpi=130, metadata=metadata)
        files.append(stem.with_suffix(f".{suffix}"))
        write_bytes(files[-1], content.getvalue())
    return files
