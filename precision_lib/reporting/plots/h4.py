"""H4: the error of the summed log-ratio against the position, and how it grows.

All positions are drawn. The slope is the record's with its interval; the square-root and the linear
law are drawn beside it.
"""

from typing import Any

import numpy as np

from precision_lib.forensics.evidence import H4Evidence
from precision_lib.metrics.drift import FIRST_POSITION, PositionRange
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import shown, with_interval
from precision_lib.reporting.plots.appearance import (
    Look,
    appearance,
    limit_line,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.cells import Group, groups, same_as
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h4_drift"
SLOPE = "accum_err_growth_exponent"


def drift(record: Record) -> Picture:
    """RMS accumulated error against position, with the fitted slope of each configuration."""
    curves = groups(record, "H4")
    ends = [p.last + 1 for p in _points(curves[0])]
    rows = tuple(
        (
            g.names[0],
            with_interval(g.cell.metrics.get(SLOPE)),
            with_interval(g.cell.metrics.get("drift_nats_per_1000_tokens")),
            *(shown(p.accumulated_rms) for p in _points(g)),
        )
        for g in curves
    )
    headings = ("configuration", "slope [95 %]", "drift, nats per 1,000 tokens [95 %]")
    return Picture(
        NAME,
        _figure(record, curves),
        "RMS over sequences of the log-ratio's error summed up to a token, nats, against the "
        "token's position; both axes logarithmic. Dashed: the record's fitted slope, the number in "
        "the legend (0.5: errors that change sign at random; 1: errors of one sign). Grey: those "
        f"two laws. {same_as(curves)}",
        f"Accumulated error against position on log-log axes; after {ends[-1]:,} tokens: "
        + ", ".join(f"{g.names[0]} {shown(_points(g)[-1].accumulated_rms)} nats" for g in curves),
        Table((*headings, *(f"{end:,} tokens" for end in ends)), rows),
    )


def _points(group: Group) -> tuple[PositionRange, ...]:
    """Raises: ValueError: the cell does not hold what is drawn."""
    sampled = group.cell.shows(H4Evidence).sampled
    if sampled is None:
        raise ValueError(f"{group.cell.name} lacks its errors by position")
    return sampled.by_position


@styled
def _figure(record: Record, found: list[Group]) -> Any:
    looks = appearance([g.names[0] for g in found], markers=True)
    limit = record.thresholds["H4"].limit
    tiny = [g for g in found if _largest(g) < limit / 100]
    panels = [p for p in ([g for g in found if g not in tiny], tiny) if p]
    heights = [3.2, 1.4][: len(panels)]
    figure, axes = new_figure(1.2 + sum(heights), len(panels), sharex=True, height_ratios=heights)
    handles: list[Any] = []
    for axis, shown_here in zip(axes[:, 0], panels, strict=True):
        for group in shown_here:
            handles.append(_line(axis, group, looks[group.names[0]]))
        axis.set(xscale="log", yscale="log")
        _guides(axis, shown_here)
        if shown_here[0] not in tiny:
            limit_line(axis, limit, at=0.75)
    axis.set_xlabel("position, tokens")
    ends = [p.last + 1 for p in _points(found[0])]
    axis.set_xticks(ends, [f"{end:,}" for end in ends])
    axis.minorticks_off()
    figure.supylabel("RMS of the accumulated error, nats", fontsize=8.5)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _largest(group: Group) -> float:
    return max(p.accumulated_rms for p in _points(group))


def _line(axis: Any, group: Group, look: Look) -> Any:
    """Draw the points of a group and the record's slope through them; the points' handle."""
    x = np.array([p.last + 1 for p in _points(group)], dtype=float)
    y = np.array([p.accumulated_rms for p in _points(group)])
    slope = group.cell.metrics.get(SLOPE)
    label = group.label + (f": slope {shown(slope.value)}" if slope else "")
    (handle,) = axis.plot(x, y, label=label, **(look | {"linestyle": "-", "linewidth": 1}))
    if slope and (y > 0).any():
        fit = through_the_middle(x, y, slope.value)
        axis.plot(x, fit, color=look["color"], linestyle="--", linewidth=0.9, alpha=0.7)
    return handle


def through_the_middle(x: Any, y: Any, slope: float) -> Any:
    """The power law of ``slope`` through the geometric middle of the positive points from
    ``FIRST_POSITION`` on, at ``x``."""
    positive = (y > 0) & (x >= FIRST_POSITION)
    positive = positive if positive.any() else y > 0
    log_x, log_y = np.log(x[positive]).mean(), np.log(y[positive]).mean()
    return np.exp(log_y + slope * (np.log(x) - log_x))


def _guides(axis: Any, found: list[Group]) -> None:
    """The two laws that mean something, from the lowest first point on."""
    x = np.array([p.last + 1 for p in _points(found[0])], dtype=float)
    start = min(_points(g)[0].accumulated_rms for g in found)
    lowest, highest = axis.get_ylim()
    for power, name in ((0.5, "square root"), (1.0, "linear")):
        y = start * (x / x[0]) ** power
        axis.plot(x, y, color="#8C8C8C", linewidth=0.9, linestyle=":")
        axis.annotate(
            name,
            (x[-1], y[-1]),
            xytext=(4, -3),
            textcoords="offset points",
            color="#666666",
            fontsize=8,
            annotation_clip=False,
        )
    axis.set_ylim(lowest, max(highest, 1.3 * start * x[-1] / x[0]))
