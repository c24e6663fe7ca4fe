"""Hypotheses by configurations: the verdict of each cell as a word, its damage and its symptom."""

from collections.abc import Mapping
from typing import Any

from precision_lib.forensics.verdicts import Cell
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import share, shown, with_interval
from precision_lib.reporting.plots.appearance import new_figure, styled
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "verdicts"
#: Light enough for black letters, and told apart in grey too.
COLOURS = {"healthy": "#CFE8F7", "inconclusive": "#F7F1B0", "impaired": "#E8935A"}
NOT_MEASURED = "not measured"
#: Metric to how a reader calls it.
WORDS = {
    "log_ratio_nsr": "noise / signal",
    "log_ratio_near_zero_frac": "zero log-ratios",
    "advantage_rms_error": "advantage error",
    "reward_tie_frac": "tied pairs",
    "value_stagnation_rate": "stand still",
    "accum_err_final": "nats at the end",
}


def words(metric: str) -> str:
    """How a reader calls a metric."""
    return WORDS.get(metric, metric)


def heat_map(record: Record) -> Picture:
    """The verdict of every cell that the record holds, and the holes where one was expected."""
    hypotheses = record.measured_hypotheses
    expected = [configuration for _, configuration in record.expected]
    names = list(dict.fromkeys([*(c.configuration for c in record.cells), *expected]))
    cells = {h: record.cells_of(h) for h in hypotheses}
    rows = tuple(_row(record, name, cells) for name in names)
    headings = ["configuration"]
    for h in hypotheses:
        metric, symptom = _metrics(record, h)
        headings.append(
            f"{h}: {words(metric)} [95 %]" + (f" · {words(symptom)}" if symptom else "")
        )
    return Picture(
        NAME,
        _figure(record, names, hypotheses, cells),
        "Verdict of each configuration on each hypothesis. In a cell: the verdict, the damage that "
        "decides (a cell is impaired when its whole 95 % interval lies above the limit at the top "
        "of the column), and behind the dot the symptom that people look at.",
        f"Table of {len(names)} configurations by {len(hypotheses)} hypotheses: "
        + "; ".join(_count(h, cells[h]) for h in hypotheses),
        Table(tuple(headings), rows),
    )


def _metrics(record: Record, hypothesis: str) -> tuple[str, str]:
    decision = record.thresholds[hypothesis]
    return decision.metric, decision.symptom


def _count(hypothesis: str, cells: Mapping[str, Cell]) -> str:
    verdicts = [c.verdict for c in cells.values()]
    return f"{hypothesis} " + ", ".join(
        f"{verdicts.count(v)} {v}" for v in COLOURS if v in verdicts
    )


def _row(record: Record, name: str, found: Mapping[str, Mapping[str, Cell]]) -> tuple[str, ...]:
    row = [name]
    for h, cells in found.items():
        metric, symptom = _metrics(record, h)
        cell = cells.get(name)
        if cell is None:
            row.append(NOT_MEASURED)
            continue
        seen = f" · {share(cell.metrics[symptom].value)}" if symptom else ""
        row.append(f"{cell.verdict}: {with_interval(cell.metrics[metric])}{seen}")
    return tuple(row)


@styled
def _figure(
    record: Record,
    names: list[str],
    hypotheses: list[str],
    found: Mapping[str, Mapping[str, Cell]],
) -> Any:
    from matplotlib.patches import Rectangle

    figure, axes = new_figure(0.36 * len(names) + 1.05)
    axis = axes[0, 0]
    for column, h in enumerate(hypotheses):
        for row, name in enumerate(names):
            cell = found[h].get(name)
            verdict = cell.verdict if cell else NOT_MEASURED
            axis.add_patch(
                Rectangle(
                    (column, row),
                    1,
                    1,
                    facecolor=COLOURS.get(verdict, "white"),
                    edgecolor="white" if cell else "#8C8C8C",
                    hatch=None if verdict in ("healthy", "impaired") else "//",
                    linewidth=1.5,
                )
            )
            weight = "normal" if verdict == "healthy" else "bold"
            axis.text(*(column + 0.5, row + 0.32), verdict, ha="center", va="center", weight=weight)
            if cell:
                text = _figures(record, h, cell)
                axis.text(column + 0.5, row + 0.7, text, ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, len(hypotheses)), ylim=(len(names), 0))
    axis.set_yticks([i + 0.5 for i in range(len(names))], names)
    titles = [_title(record, h) for h in hypotheses]
    axis.set_xticks([i + 0.5 for i in range(len(hypotheses))], titles)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return figure


def _figures(record: Record, hypothesis: str, cell: Cell) -> str:
    metric, symptom = _metrics(record, hypothesis)
    text = shown(cell.metrics[metric].value)
    return f"{text} · {share(cell.metrics[symptom].value)}" if symptom else text


def _title(record: Record, hypothesis: str) -> str:
    decision = record.thresholds[hypothesis]
    metric, symptom = _metrics(record, hypothesis)
    title = decision.title.replace("value-head instability", "value head")
    second = words(metric) + (f" ·\n{words(symptom)}" if symptom else "\n")
    return f"{hypothesis} {title}\n{second}\nlimit {decision.limit:.2g}"
