"""H6: weights that a step moves against the learning rate, and what is left of the steps."""

from typing import Any

from precision_lib.forensics.evidence import H6Evidence
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import shown, with_interval
from precision_lib.reporting.plots.appearance import appearance, limit_line, new_figure, styled
from precision_lib.reporting.plots.cells import Group, groups, same_as
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h6_absorption"
DAMAGE = "logprob_change_rel_error"


def absorption(record: Record) -> Picture:
    """Share of stored weights that a step moves, and the error of the change of log-probs."""
    curves = groups(record, "H6")
    masters = list(curves[0].cell.shows(H6Evidence).masters)
    rows = tuple(
        (
            g.names[0],
            with_interval(g.cell.metrics[DAMAGE]),
            shown(g.cell.metrics["weights_moved_frac"].value),
            *(with_interval(g.cell.shows(H6Evidence).masters[f].metrics[DAMAGE]) for f in masters),
        )
        for g in curves
    )
    headings = ("configuration", "error of the change [95 %]", "weights that move in a step")
    return Picture(
        NAME,
        _figure(record, curves),
        "Left: share of the weights that one optimizer step moves where they are stored in 16 "
        "bits, against the learning rate; the first step, scaled. Right: error of the accumulated "
        "change of log-probs, over that change, by the format that the weights are stored in. The "
        f"table also says so for every policy format. {same_as(curves)}",
        "Share of moved weights against the learning rate, and error of the change by storage: "
        + ", ".join(f"{f} {shown(_damage(curves[0], f))}" for f in masters),
        Table((*headings, *(f"weights in {f}, error [95 %]" for f in masters)), rows),
    )


def _damage(group: Group, master: str) -> float:
    return group.cell.shows(H6Evidence).masters[master].metrics[DAMAGE].value


@styled
def _figure(record: Record, cells: list[Group]) -> Any:
    evidence = cells[0].cell.shows(H6Evidence)
    looks = appearance(list(evidence.masters), markers=True)
    figure, axes = new_figure(3.2, 1, 2)
    moved, damage = axes[0]
    for fmt, points in evidence.first_step.items():
        rates = [p.learning_rate for p in points]
        moved.plot(rates, [p.moved_frac for p in points], label=fmt, **looks[fmt])
    moved.set(xscale="log", ylim=(-0.02, 1.02), xlabel="learning rate")
    moved.set_ylabel("weights that move")
    moved.legend(title="stored in")
    for place, (fmt, stored) in enumerate(evidence.masters.items()):
        metric = stored.metrics[DAMAGE]
        away = [[metric.value - metric.low], [metric.high - metric.value]]
        look = {k: v for k, v in looks[fmt].items() if k in ("color", "marker")}
        damage.errorbar([place], [metric.value], yerr=away, capsize=3, **look)
    damage.set_xticks(range(len(evidence.masters)), list(evidence.masters))
    damage.set(xlabel="weights stored in", ylabel="error over change", ylim=(-0.05, None))
    damage.margins(x=0.2)
    limit_line(damage, record.thresholds["H6"].limit, at=0.05)
    return figure
