"""H2: the lattice that rewards live on, and what it costs the advantages.

One panel shows the step of the format at the rewards, the other the damage at growing offsets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from precision_lib.forensics.evidence import H2Evidence
from precision_lib.forensics.h2.families import SAMPLES
from precision_lib.forensics.h2.law import predicted_rms
from precision_lib.forensics.h2.rewards import NativeRewards, RewardFamily, StoringLaw
from precision_lib.forensics.verdicts import Cell
from precision_lib.formats import FORMATS, ulp
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import share, shown
from precision_lib.reporting.plots.appearance import (
    COLOURS,
    LIMIT_COLOUR,
    limit_line,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h2_rewards"


@dataclass(frozen=True)
class _Stored:
    """Rewards as one cell stored them, and the limit of the damage."""

    fmt: str
    cell: Cell
    native: NativeRewards
    law: StoringLaw
    families: tuple[RewardFamily, ...]
    limit: float

    @property
    def normal(self) -> list[RewardFamily]:
        """Normal rewards, by the offset of their mean."""
        return [f for f in self.families if f.offset_over_spread is not None]


def stored_format(record: Record) -> tuple[str, Cell]:
    """The first format narrower than FP32 that rewards were stored in, and a cell of it.

    ``bf16_pure``'s where the record has it, that of the first configuration else.
    """
    cells = record.cells_of("H2")
    narrow = [name for name in cells if record.matrix[name]["reward"] in ("bf16", "fp16")]
    name = "bf16_pure" if "bf16_pure" in narrow else next(iter(narrow or cells))
    return record.matrix[name]["reward"], cells[name]


def _stored(record: Record) -> _Stored:
    """Raises: ValueError: the cell does not hold what is drawn."""
    fmt, cell = stored_format(record)
    evidence = cell.shows(H2Evidence)
    if not (evidence.native and evidence.storing_law and evidence.synthetic):
        raise ValueError(f"{cell.name} lacks its rewards, the law of storing or synthetic rewards")
    families, limit = evidence.synthetic.families, record.thresholds["H2"].limit
    return _Stored(fmt, cell, evidence.native, evidence.storing_law, families, limit)


def rewards(record: Record) -> Picture:
    """The grid step at the rewards, and the advantage error against offset over spread."""
    stored = _stored(record)
    fmt, first, last = stored.fmt, stored.normal[0], stored.normal[-1]
    title = (f"rewards, stored in {fmt}", "step / spread", "ties", "advantage error", "derived")
    return Picture(
        NAME,
        _figure(stored),
        f"Left: the step of a format at a reward of a given size, both in reward units; shaded, "
        "where this model's rewards lie (mean and two standard deviations to either side). Dashed: "
        "the step at which the damage passes the limit, at this model's spread within a group, "
        f"{shown(stored.native.within_group_std)}. Right: error of group-normalised advantages "
        f"(RMS error over RMS) of normal rewards stored in {fmt}, by how many spreads their mean "
        "is away from zero; dotted: the law of first order, which holds while the step is below "
        "the spread. Rewards of two values or on a coarse scale have no such law (table).",
        f"Left: the steps of {fmt} and fp32 as staircases that double with every power of two. "
        f"Right: the advantage error, {shown(first.advantage_rms_error)} at an offset of "
        f"{first.offset_over_spread:g} spreads and {shown(last.advantage_rms_error)} at "
        f"{last.offset_over_spread:g}.",
        Table((*title, "sign flips"), _rows(stored)),
    )


def _rows(stored: _Stored) -> tuple[tuple[str, ...], ...]:
    """This model's own rewards, then the synthetic ones."""
    rows = tuple(
        (
            f.rewards,
            shown(f.step_over_spread),
            share(f.reward_tie_frac),
            shown(f.advantage_rms_error),
            shown(f.advantage_rms_error_predicted),
            share(f.advantage_sign_flip_frac),
        )
        for f in stored.families
    )
    metrics = stored.cell.metrics
    mine = (
        "this reward model's",
        shown(stored.native.resolution_over_spread),
        share(metrics["reward_tie_frac"].value),
        shown(stored.law.measured),
        shown(stored.law.predicted),
        share(metrics["advantage_sign_flip_frac"].value),
    )
    return (mine, *rows)


@styled
def _figure(stored: _Stored) -> Any:
    figure, axes = new_figure(3.6, 1, 2)
    _lattice(axes[0, 0], stored)
    _errors(axes[0, 1], stored)
    return figure


def _lattice(axis: Any, stored: _Stored) -> None:
    native, fmt = stored.native, stored.fmt
    ends = [native.reward_mean + side * 2 * native.batch_std for side in (-1, 1)]
    size = np.geomspace(2.0**-6, max(1024.0, 4 * max(map(abs, ends))), 2000)
    for name, colour, style in ((fmt, COLOURS[0], "-"), ("fp32", "black", "-.")):
        step = ulp(torch.from_numpy(size), FORMATS[name]).numpy()
        axis.plot(size, step, color=colour, linestyle=style, label=f"step of {name}")
    low, high = sorted(map(abs, ends))
    low = size[0] if ends[0] * ends[1] < 0 else max(low, size[0])
    axis.axvspan(low, high, color=COLOURS[1], alpha=0.25, linewidth=0, label="rewards here")
    critical = stored.limit / predicted_rms(1.0, SAMPLES) * native.within_group_std
    axis.axhline(critical, color=LIMIT_COLOUR, linestyle="--", linewidth=1, label="critical step")
    axis.set(xscale="log", yscale="log", xlabel="size of a reward, reward units")
    axis.set_ylabel("step of the format, reward units")
    axis.legend(loc="lower right")


def _errors(axis: Any, stored: _Stored) -> None:
    normal = stored.normal
    offset = [f.offset_over_spread for f in normal]
    error = np.array([f.advantage_rms_error for f in normal])
    ends = np.array([f.advantage_rms_error_interval for f in normal], dtype=float).T
    bars = np.abs(ends - error)
    axis.errorbar(offset, error, bars, fmt="o", color=COLOURS[5], label="normal rewards, measured")
    predicted = [_or_nan(f.advantage_rms_error_predicted) for f in normal]
    axis.plot(offset, predicted, color="black", linestyle=":", label="derived, first order")
    axis.plot(
        *([abs(stored.native.offset_over_spread)], [_or_nan(stored.law.measured)]),
        marker="*",
        markersize=11,
        linestyle="none",
        color=COLOURS[4],
        label="this model's rewards",
    )
    axis.set(xscale="log", yscale="log", xlabel="offset / spread of the rewards")
    axis.set_ylim(top=4)
    axis.set_ylabel("advantage error (RMS error / RMS)")
    limit_line(axis, stored.limit)
    axis.legend(loc="lower right")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
