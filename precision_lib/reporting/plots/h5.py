"""H5: the summed log-ratio of trainer and rollout against the position, and by rollout format."""

from typing import Any

import numpy as np

from precision_lib.forensics.evidence import H5Evidence
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import shown, with_interval
from precision_lib.reporting.plots.appearance import appearance, limit_line, new_figure, styled
from precision_lib.reporting.plots.cells import Group, groups, same_as
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h5_mismatch"
DAMAGE = "rollout_log_ratio_final"


def mismatch(record: Record) -> Picture:
    """RMS of the summed log-ratio against the position, and a table of rollout formats."""
    curves = groups(record, "H5")
    formats = list(curves[0].cell.shows(H5Evidence).formats)
    rows = tuple(
        (
            g.names[0],
            with_interval(g.cell.metrics[DAMAGE]),
            with_interval(g.cell.metrics["rollout_logprob_abs_diff_mean"]),
            *(with_interval(g.cell.shows(H5Evidence).formats[f].metrics[DAMAGE]) for f in formats),
        )
        for g in curves
    )
    headings = ("configuration", "at the end, nats [95 %]", "per token, nats [95 %]")
    return Picture(
        NAME,
        _figure(record, curves),
        "RMS over sequences of trainer's minus rollout's log-prob summed up to a token, nats, "
        "against the token's position; both axes logarithmic. Grey: the square root of the "
        "position, which errors that change sign at random follow. The table also says what each "
        f"rollout format does beside the same trainer. {same_as(curves)}",
        "Summed log-ratio against position on log-log axes; at the end: "
        + ", ".join(f"{g.names[0]} {shown(_last(g))} nats" for g in curves),
        Table((*headings, *(f"rollout in {f}, nats [95 %]" for f in formats)), rows),
    )


def _last(group: Group) -> float:
    return float(group.cell.metrics[DAMAGE].value)


def _line(group: Group) -> tuple[Any, Any]:
    """Positions and sums; NaN where two engines agree bit for bit, which has no logarithm."""
    points = group.cell.shows(H5Evidence).by_position
    x = np.array([p.last + 1 for p in points], dtype=float)
    y = np.array([p.accumulated_rms for p in points])
    return x, np.where(y > 0, y, np.nan)


@styled
def _figure(record: Record, found: list[Group]) -> Any:
    looks = appearance([g.names[0] for g in found], markers=True)
    figure, axes = new_figure(4.4, 1)
    axis = axes[0, 0]
    axis.set(xscale="log", yscale="log", xlabel="position, tokens")
    for group in found:
        x, y = _line(group)
        axis.plot(x, y, label=group.label, **(looks[group.names[0]] | {"linewidth": 1}))
    x, y = _line(max(found, key=_last))
    if y[0] > 0:
        axis.plot(x, y[0] * np.sqrt(x / x[0]), color="#8C8C8C", linewidth=0.9, linestyle=":")
    limit_line(axis, record.thresholds["H5"].limit, at=0.75)
    axis.set_xticks(x, [f"{end:,.0f}" for end in x])
    axis.minorticks_off()
    axis.set_ylabel("RMS of the summed log-ratio, nats", fontsize=8.5)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
