"""H3: what a value head loses by the size of its values, and by their offset.

Size and offset have a panel each, with what theory gives.
"""

from typing import Any

import numpy as np
import torch

from precision_lib.forensics.evidence import H3Evidence
from precision_lib.formats import FORMATS, ulp
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import share, shown, with_interval
from precision_lib.reporting.plots.appearance import (
    Look,
    appearance,
    legend_below,
    limit_line,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.cells import Group, groups, same_as
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h3_values"
DAMAGE, SYMPTOM = "advantage_rms_error", "value_stagnation_rate"
#: Below the largest ratio that can be drawn beside the measured ones, the law is drawn.
LAW_UP_TO = 2.0


def step_at(size: float, fmt: str) -> float:
    """Step of a format at a value of ``size``, in the value's unit."""
    return float(ulp(torch.tensor([size], dtype=torch.float64), FORMATS[fmt])[0])


def values(record: Record) -> Picture:
    """Step and stagnation against magnitude, advantage error against magnitude and offset."""
    drawn = groups(record, "H3")
    rows = [
        (
            g.names[0],
            f"RMS value {p.magnitude:g}",
            shown(step_at(p.magnitude, _format(record, g))),
            share(p.metrics[SYMPTOM].value),
            share(p.value_stagnation_rate_predicted),
            with_interval(p.metrics[DAMAGE]),
            shown(p.advantage_rms_error_predicted),
        )
        for g in drawn
        for p in _evidence(g).by_magnitude
    ]
    rows += [
        (
            g.names[0],
            f"offset / spread {p.offset_over_spread:g}",
            *("–", "–", "–"),
            with_interval(p.metrics[DAMAGE]),
            shown(p.advantage_rms_error_predicted),
        )
        for g in drawn
        for p in _evidence(g).by_offset
    ]
    headings = ("configuration", "", "step, reward units", "stand still", "derived")
    return Picture(
        NAME,
        _figure(record, drawn),
        "Rewards scaled to an RMS value, or moved by an offset, the head fitted again each time. "
        "Top left: step of the value format at that size, reward units; the marks are the median "
        "step at the predictions of this critic. Top right: share of optimizer steps that do not "
        "move a prediction though they move the golden one. Bottom: RMS error of whitened "
        "advantages, in their standard deviations, by size and by offset over spread. "
        f"Dotted: derived for rounding the stored values alone. {same_as(drawn)}",
        f"Four panels: step, stagnation and advantage error by size and offset. {_in_words(drawn)}",
        Table((*headings, "advantage error [95 %]", "derived"), tuple(rows)),
    )


def _in_words(found: list[Group]) -> str:
    """Stagnation and error of each configuration at the ends of the sizes and offsets."""
    parts = []
    for group in found:
        sizes, offsets = _evidence(group).by_magnitude, _evidence(group).by_offset
        still = " to ".join(share(sizes[i].metrics[SYMPTOM].value) for i in (0, -1))
        by_size = " to ".join(shown(sizes[i].metrics[DAMAGE].value) for i in (0, -1))
        by_offset = " to ".join(shown(offsets[i].metrics[DAMAGE].value) for i in (0, -1))
        parts.append(
            f"{group.names[0]}: {still} stand still, error {by_size} by size, {by_offset} by offset"
        )
    return "; ".join(parts)


def _format(record: Record, group: Group) -> str:
    return record.matrix[group.names[0]]["value"]


def _evidence(group: Group) -> H3Evidence:
    return group.cell.shows(H3Evidence)


@styled
def _figure(record: Record, found: list[Group]) -> Any:
    looks = appearance([g.names[0] for g in found], markers=True)
    figure, axes = new_figure(5.6, 2, 2)
    _steps(axes[0, 0], record, found, looks)
    for group in found:
        sizes, offsets = _evidence(group).by_magnitude, _evidence(group).by_offset
        size = [p.magnitude for p in sizes]
        for axis, x, y in (
            (axes[0, 1], size, [100 * p.metrics[SYMPTOM].value for p in sizes]),
            (axes[1, 0], size, [p.metrics[DAMAGE].value for p in sizes]),
            (
                axes[1, 1],
                [p.offset_over_spread for p in offsets],
                [p.metrics[DAMAGE].value for p in offsets],
            ),
        ):
            axis.plot(x, y, label=group.label, **looks[group.names[0]])
    narrow = next((g for g in found if _format(record, g) != "fp32"), found[0])
    _predicted(axes, _evidence(narrow))
    for axis in axes[0]:
        axis.set(xscale="log", xlabel="RMS value, reward units")
    axes[0, 1].set_ylabel("predictions that stand still, %")
    for axis in axes[1]:
        axis.set(yscale="log", ylabel="advantage error, std")
        limit = record.thresholds["H3"].limit
        axis.set_ylim(top=max(axis.get_ylim()[1], 3 * limit))
        limit_line(axis, limit)
    axes[1, 0].set(xscale="log", xlabel="RMS value, reward units")
    axes[1, 1].set_xscale("symlog", linthresh=1)
    axes[1, 1].set_xlim(-0.15, None)
    axes[1, 1].set_xlabel("offset / spread of the rewards (linear below 1)")
    legend_below(figure, axes[0, 1], 3)
    return figure


def _steps(axis: Any, record: Record, found: list[Group], looks: dict[str, Look]) -> None:
    size = np.array([p.magnitude for p in _evidence(found[0]).by_magnitude])
    fine = np.geomspace(size.min(), size.max(), 1500)
    formats = list(dict.fromkeys(_format(record, g) for g in found))
    for style, fmt in zip(("-", ":", "-."), formats, strict=False):
        axis.plot(fine, [step_at(x, fmt) for x in fine], color="#666666", linestyle=style)
        axis.annotate(
            f"step of {fmt}",
            (fine[-1], step_at(fine[-1], fmt)),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    for group in found:
        critic, step = _evidence(group).critic, group.cell.metrics["value_quant_step_median"]
        look = looks[group.names[0]] | {"linestyle": "none"}
        if critic is not None:
            axis.plot([critic.value_rms], [step.value], **look)
    axis.set(yscale="log", ylabel="step of the format, reward units")


def _predicted(axes: Any, evidence: H3Evidence) -> None:
    sizes, offsets = evidence.by_magnitude, evidence.by_offset
    look = {"color": "black", "linestyle": ":", "linewidth": 2.2, "alpha": 0.6, "zorder": 5}
    size = [p.magnitude for p in sizes]
    shares = [100 * p.value_stagnation_rate_predicted for p in sizes]
    axes[0, 1].plot(size, shares, label="derived", **look)
    axes[1, 0].plot(size, [p.advantage_rms_error_predicted for p in sizes], **look)
    drawn = [p for p in offsets if p.advantage_rms_error_predicted <= LAW_UP_TO]
    offset = [p.offset_over_spread for p in drawn]
    axes[1, 1].plot(offset, [p.advantage_rms_error_predicted for p in drawn], **look)
