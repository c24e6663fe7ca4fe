"""H2: the lattice that rewards live on, and what it costs the advantages.

One panel shows the step of the format at the rewards, the other the damage at growing offsets.
"""

from typing import Any

import numpy as np
import torch

from precision_lib.forensics.h2.families import SAMPLES
from precision_lib.forensics.h2.law import predicted_rms
from precision_lib.formats import FORMATS, ulp
from precision_lib.reporting.plots.appearance import (
    COLOURS,
    LIMIT_COLOUR,
    limit_line,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.cells import Block, cells_of, number, share, shown
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h2_rewards"
DAMAGE = "advantage_rms_error"


def stored_format(block: Block) -> tuple[str, dict[str, Any]]:
    """The first format narrower than FP32 that rewards were stored in, and a cell of it.

    ``bf16_pure``'s where the record has it, that of the first configuration else.
    """
    cells = cells_of(block, "H2")
    narrow = {n: c for n, c in cells.items() if block["matrix"][n]["reward"] in ("bf16", "fp16")}
    name = "bf16_pure" if "bf16_pure" in narrow else next(iter(narrow or cells))
    return block["matrix"][name]["reward"], cells[name]


def rewards(block: Block) -> Picture:
    """The grid step at the rewards, and the advantage error against offset over spread."""
    fmt, cell = stored_format(block)
    families = cell["evidence"]["synthetic"]["families"]
    normal = _normal(families)
    native = cell["evidence"]["native"]
    title = (f"rewards, stored in {fmt}", "step / spread", "ties", "advantage error", "derived")
    return Picture(
        NAME,
        _figure(block, fmt, cell),
        f"Left: the step of a format at a reward of a given size, both in reward units; shaded, "
        "where this model's rewards lie (mean and two standard deviations to either side). Dashed: "
        "the step at which the damage passes the limit, at this model's spread within a group, "
        f"{shown(native['within_group_std'])}. Right: error of group-normalised advantages (RMS "
        f"error over RMS) of normal rewards stored in {fmt}, by how many spreads their mean is "
        "away from zero; dotted: the law of first order, which holds while the step is below the "
        "spread. Rewards of two values or on a coarse scale have no such law (table).",
        f"Left: the steps of {fmt} and fp32 as staircases that double with every power of two. "
        f"Right: the advantage error, {shown(normal[0][DAMAGE])} at an offset of "
        f"{normal[0]['offset_over_spread']:g} spreads and {shown(normal[-1][DAMAGE])} at "
        f"{normal[-1]['offset_over_spread']:g}.",
        Table((*title, "sign flips"), _rows(cell)),
    )


def _rows(cell: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """This model's own rewards, then the synthetic ones."""
    families = cell["evidence"]["synthetic"]["families"]
    native = cell["evidence"]["native"]
    rows = tuple(
        (
            f["rewards"],
            shown(f.get("step_over_spread")),
            share(f["reward_tie_frac"]),
            shown(f[DAMAGE]),
            shown(f.get(f"{DAMAGE}_predicted")),
            share(f["advantage_sign_flip_frac"]),
        )
        for f in families
    )
    law = cell["evidence"]["storing_law"]
    mine = (
        "this reward model's",
        shown(native["resolution_over_spread"]),
        share(cell["metrics"]["reward_tie_frac"]["value"]),
        shown(law["measured"]),
        shown(law["predicted"]),
        share(cell["metrics"]["advantage_sign_flip_frac"]["value"]),
    )
    return (mine, *rows)


@styled
def _figure(block: Block, fmt: str, cell: dict[str, Any]) -> Any:
    figure, axes = new_figure(3.6, 1, 2)
    _lattice(axes[0, 0], block, fmt, cell["evidence"]["native"])
    _errors(axes[0, 1], block, cell)
    return figure


def _lattice(axis: Any, block: Block, fmt: str, native: dict[str, Any]) -> None:
    mean, spread = native["reward_mean"], native["batch_std"]
    largest = max(1024.0, 4 * (abs(mean) + 2 * spread))
    size = np.geomspace(2.0**-6, largest, 2000)
    for name, colour, style in ((fmt, COLOURS[0], "-"), ("fp32", "black", "-.")):
        step = ulp(torch.from_numpy(size), FORMATS[name]).numpy()
        axis.plot(size, step, color=colour, linestyle=style, label=f"step of {name}")
    low = max(min(abs(mean - 2 * spread), abs(mean + 2 * spread)), size[0])
    if (mean - 2 * spread) * (mean + 2 * spread) < 0:
        low = size[0]
    high = max(abs(mean - 2 * spread), abs(mean + 2 * spread))
    axis.axvspan(low, high, color=COLOURS[1], alpha=0.25, linewidth=0, label="rewards here")
    limit = block["thresholds"]["H2"]["limit"]
    critical = limit / predicted_rms(1.0, SAMPLES) * native["within_group_std"]
    axis.axhline(critical, color=LIMIT_COLOUR, linestyle="--", linewidth=1, label="critical step")
    axis.set(xscale="log", yscale="log", xlabel="size of a reward, reward units")
    axis.set_ylabel("step of the format, reward units")
    axis.legend(loc="lower right")


def _normal(families: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [f for f in families if f.get("offset_over_spread") is not None]


def _errors(axis: Any, block: Block, cell: dict[str, Any]) -> None:
    families = cell["evidence"]["synthetic"]["families"]
    normal = _normal(families)
    offset = [number(f["offset_over_spread"]) for f in normal]
    error = np.array([number(f[DAMAGE]) for f in normal])
    ends = np.array([f[f"{DAMAGE}_interval"] for f in normal], dtype=float).T
    bars = np.abs(ends - error)
    axis.errorbar(offset, error, bars, fmt="o", color=COLOURS[5], label="normal rewards, measured")
    predicted = [number(f.get(f"{DAMAGE}_predicted")) for f in normal]
    axis.plot(offset, predicted, color="black", linestyle=":", label="derived, first order")
    native, law = cell["evidence"]["native"], cell["evidence"]["storing_law"]
    axis.plot(
        *([abs(native["offset_over_spread"])], [number(law["measured"])]),
        marker="*",
        markersize=11,
        linestyle="none",
        color=COLOURS[4],
        label="this model's rewards",
    )
    axis.set(xscale="log", yscale="log", xlabel="offset / spread of the rewards")
    axis.set_ylim(top=4)
    axis.set_ylabel("advantage error (RMS error / RMS)")
    limit_line(axis, block["thresholds"]["H2"]["limit"])
    axis.legend(loc="lower right")
