"""Times of the PPO core's steps: everybody's as a multiple of the core's own.

Whoever is beyond the limit of FP32 arithmetic is drawn hollow, and the error stands in the table.
"""

from collections.abc import Sequence
from typing import Any

from precision_lib.reporting.benchmarks import Benchmarks, Row
from precision_lib.reporting.plots.appearance import (
    COLOURS,
    MARKERS,
    WIDTH,
    legend_below,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.picture import NothingToDrawError, Picture, Table

NAME = "benchmarks"
OURS = "ours"
Key = tuple[str, tuple[int, ...], str]


def ratios(results: Benchmarks) -> Picture:
    """Time over the core's own time, per step and format.

    Raises:
        NothingToDrawError: nothing of the core was measured in these results.
    """
    own = {_key(row): row for row in results.rows if row.kind == OURS}
    compared = [row for row in results.rows if _key(row) in own]
    if not compared:
        raise NothingToDrawError("no step of the PPO core was timed in these results")
    table = tuple(
        (
            row.step,
            row.fmt,
            row.contender,
            row.version,
            f"{row.ms:.3g}",
            f"{row.ms / own[_key(row)].ms:.2f}",
            f"{row.peak_mib:.1f}",
            "0" if row.error == 0 else f"{row.error:.2g}",
        )
        for row in compared
    )
    headings = ("step", "format", "contender", "version", "ms", "times ours", "peak MiB")
    return Picture(
        NAME,
        _figure(compared, own),
        "Time of a step as a multiple of this suite's own time, which is the line at 1: to the "
        "right of it is slower. Forward alone unless it says + backward. Hollow: the error is more "
        "than FP32 arithmetic may do. Median of the rounds; compare ratios within one run, not "
        "milliseconds between machines.",
        f"One line per step and format, {len(own)} in all, with a mark for each contender at its "
        "time over this suite's.",
        Table((*headings, "error / limit"), table),
    )


def _key(row: Row) -> Key:
    return row.step, row.shape, row.fmt


@styled
def _figure(compared: Sequence[Row], own: dict[Key, Row]) -> Any:
    keys = list(own)
    others = list(dict.fromkeys(r.contender for r in compared if r.kind != OURS))
    columns = max(1, int(WIDTH / (0.5 + 0.065 * max(map(len, others), default=1))))  # inches
    figure, axes = new_figure(0.21 * len(keys) + 1.0 + 0.17 * -(-len(others) // columns))
    axis = axes[0, 0]
    for place, name in enumerate(others):
        colour, marker = COLOURS[place % 6], MARKERS[place % len(MARKERS)]
        for accurate in (True, False):
            chosen = [r for r in compared if r.contender == name and r.accurate is accurate]
            axis.plot(
                [r.ms / own[_key(r)].ms for r in chosen],
                [keys.index(_key(r)) for r in chosen],
                color=colour,
                marker=marker,
                markerfacecolor=colour if accurate else "white",
                markersize=6,
                linestyle="none",
            )
        axis.plot([], [], color=colour, marker=marker, linestyle="none", label=name)
    axis.axvline(1, color="black", linewidth=1.4)
    steps = [step.replace(", forward and", " +").removesuffix(", forward") for step, _, _ in keys]
    labels = [f"{step} · {fmt}" for step, (_, _, fmt) in zip(steps, keys, strict=True)]
    axis.set_yticks(range(len(keys)), labels)
    axis.set_ylim(len(keys) - 0.4, -0.6)
    axis.set_xscale("log")
    _plain_ticks(axis)
    axis.set_xlabel("time / this suite's time")
    legend_below(figure, axis, columns)
    return figure


def _plain_ticks(axis: Any) -> None:
    low, high = axis.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
