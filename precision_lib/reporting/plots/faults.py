"""The suite's own test: planted faults by the part of the suite that noticed them, and how clearly.

The map shows the margin of each. A fault that was not caught is named, at its place and in the
caption.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.record.self_test import FaultOutcome, SelfTest
from precision_lib.reporting.numbers import shown
from precision_lib.reporting.plots.appearance import new_figure, styled
from precision_lib.reporting.plots.picture import NothingToDrawError, Picture, Table

NAME = "fault_matrix"
CATCHERS = ("core", *HYPOTHESES, "gate")
CAUGHT, BELOW = "caught", "below the noise floor"
#: How a fault should not end.
BAD = ("missed", "false alarm")
#: Columns of faults side by side, so that a hundred of them fit on a page.
SIDES = 2
#: Margins from 1 to a million times the limit have shades.
DECADES = 6


def catcher(test: str) -> str:
    """Which part of the suite caught a fault, by the test's file; bare names are of conformance."""
    if test.startswith("gate:"):
        return CATCHERS[-1]
    match = re.search(r"test_(h\d+)_", test)
    return match.group(1).upper() if match else CATCHERS[0]


def margins(fault: FaultOutcome) -> dict[str, float | None]:
    """Catcher to the largest margin, in times the limit; None where it has no size."""
    largest: dict[str, float | None] = {}
    for catch in fault.caught:
        name = catcher(catch.by)
        both = (largest.get(name), catch.margin)
        largest[name] = max((margin for margin in both if margin is not None), default=None)
    return largest


def matrix(self_test: SelfTest) -> Picture:
    """Faults of a ``self_test.json`` by who caught them, coloured by the margin.

    Raises:
        NothingToDrawError: it holds no fault.
    """
    faults = sorted(self_test.faults, key=lambda f: f.function)
    if not faults:
        raise NothingToDrawError("no fault was planted in this self-test")
    counts = {o: [f.name for f in faults if f.outcome == o] for o in (CAUGHT, BELOW, *BAD)}
    loud = [f"{o.upper()}: {', '.join(counts[o])}." for o in BAD if counts[o]]
    missed = " ".join(loud) or "None was missed."
    summary = ", ".join(f"{len(names)} {outcome}" for outcome, names in counts.items())
    return Picture(
        NAME,
        _figure(faults),
        f"Planted faults ({summary}) by the part of the suite that caught each (core: "
        "the conformance tests of the PPO core, H1 and so on: the hypothesis' own tests, gate: the "
        f"comparison with a baseline). {missed} The number "
        "is the decimal logarithm of the margin, the error in times the limit (3: a thousand "
        "times), deeper shades for larger ones; a tick is a catch without a size.",
        f"Map of {len(faults)} faults by {len(CATCHERS)} catchers: {summary}.",
        Table(
            ("function", "fault", "outcome", "caught by", "smallest detectable", "what goes wrong"),
            tuple(_row(f) for f in faults),
        ),
    )


def _row(fault: FaultOutcome) -> tuple[str, ...]:
    by_catcher = margins(fault)
    outcome = fault.outcome.upper() if fault.outcome in BAD else fault.outcome
    by = (
        ", ".join(f"{name} {_margin(margin)}".strip() for name, margin in by_catcher.items()) or "–"
    )
    smallest = fault.smallest_detectable or "–"
    return fault.function, fault.name, outcome, by, smallest, fault.meaning


def _margin(margin: float | None) -> str:
    return "" if margin is None else f"{shown(margin)}×"


def _lines(faults: Sequence[FaultOutcome]) -> list[FaultOutcome | str]:
    """Faults with a heading, the function's name, before each group."""
    lines: list[FaultOutcome | str] = []
    for function in dict.fromkeys(f.function for f in faults):
        lines += [function, *(f for f in faults if f.function == function)]
    return lines


@styled
def _figure(faults: Sequence[FaultOutcome]) -> Any:
    lines = _lines(faults)
    half = math.ceil(len(lines) / SIDES)
    if half < len(lines) and isinstance(lines[half - 1], str):
        half += 1  # no heading at the foot of a column
    figure, axes = new_figure(0.158 * half + 0.6, 1, SIDES)
    for axis, start in zip(axes[0], range(0, SIDES * half, half), strict=True):
        _side(axis, lines[start : start + half], half)
    figure.get_layout_engine().set(w_pad=0.05)
    return figure


def _side(axis: Any, lines: Sequence[FaultOutcome | str], rows: int) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    shades = colormaps["cividis_r"]
    for row, line in enumerate(lines):
        if isinstance(line, str):
            axis.text(-0.15, row + 0.5, line, ha="right", va="center", weight="bold", fontsize=8)
            continue
        bad = line.outcome in BAD
        name = f"{line.outcome.upper()}: {line.name}" if bad else line.name
        axis.text(
            -0.15,
            row + 0.5,
            name,
            ha="right",
            va="center",
            fontsize=8,
            weight="bold" if bad else "normal",
            color="#A84900" if bad else "black",
        )
        for column, (colour, text, ink) in enumerate(_cells(line, shades)):
            axis.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white"))
            axis.text(
                column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=ink
            )
        if line.outcome == BELOW:
            axis.text(len(CATCHERS) / 2, row + 0.5, BELOW, ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, len(CATCHERS)), ylim=(rows, 0), yticks=[])
    axis.set_xticks([i + 0.5 for i in range(len(CATCHERS))], CATCHERS)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _cells(fault: FaultOutcome, shades: Any) -> list[tuple[Any, str, str]]:
    """Colour, text and colour of the text, of each catcher."""
    by_catcher = margins(fault)
    cells: list[tuple[Any, str, str]] = []
    for name in CATCHERS:
        if name not in by_catcher:
            cells.append(("#F4F4F4", "", "black"))
            continue
        margin = by_catcher[name]
        decade = 0.0 if margin is None else math.log10(max(margin, 1.0))
        shade = 0.08 + 0.85 * min(decade / DECADES, 1.0)
        text = "✓" if margin is None else f"{decade:.0f}" if math.isfinite(decade) else "∞"
        cells.append((shades(shade), text, "white" if shade > 0.55 else "black"))
    return cells
