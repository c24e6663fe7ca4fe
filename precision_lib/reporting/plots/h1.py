"""H1: the collapse curve. What each configuration sees of a policy that moves away by a known KL.

Zeros and noise are drawn over six decades of the KL, beside what theory gives.
"""

import math
from typing import Any

from precision_lib.forensics.evidence import H1Evidence
from precision_lib.forensics.h1 import law
from precision_lib.record.record import Record
from precision_lib.reporting.numbers import share, shown
from precision_lib.reporting.plots.appearance import (
    appearance,
    legend_below,
    limit_line,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.cells import Group, groups, same_as
from precision_lib.reporting.plots.picture import Picture, Table
from precision_lib.reporting.table import curve_of

NAME = "h1_collapse_curve"
ZEROS, NOISE = "log_ratio_near_zero_frac", "log_ratio_nsr"
#: Derived curves: what they are of, metric, and the points as (KL, value).
Derived = tuple[str, str, list[tuple[float, float]]]


def collapse_curve(record: Record) -> Picture:
    """Zero log-ratios and noise over signal against the true KL, measured and derived."""
    curves, predictions = groups(record, "H1"), derived(record)
    kls = [p.true_kl for p in curve_of(curves[0].cell)]
    rows = [
        (g.names[0], what, *(form(p.metrics[key].value) for p in curve_of(g.cell)))
        for what, key, form in (("zeros", ZEROS, share), ("noise/signal", NOISE, shown))
        for g in curves
    ]
    for name, key, points in predictions:
        what, form = ("zeros", share) if key == ZEROS else ("noise/signal", shown)
        rows.append((f"{name}, derived", what, *(form(value) for _, value in points)))
    predicted = (
        "Dotted: derived, not fitted to these points (specification, section 4)."
        if predictions
        else "The record holds nothing that a prediction could be derived from."
    )
    return Picture(
        NAME,
        _figure(record, curves, predictions),
        "Left, the symptom: share of response tokens whose log-ratio is zero. Right, the damage: "
        "RMS error of the log-ratio over its RMS. Both against the true KL between policy and "
        f"reference, nats per token, full vocabulary, float64. {predicted} {same_as(curves)}",
        f"Share of zero log-ratios, and noise over signal, over a true KL of {kls[0]:.0e} to "
        f"{kls[-1]:.0e}. {_in_words(curves)}",
        Table(("configuration", "", *(f"KL {kl:.1e}" for kl in kls)), tuple(rows)),
    )


def _in_words(found: list[Group]) -> str:
    """Both figures of each configuration from the smallest KL to the largest."""
    parts = []
    for group in found:
        ends = [curve_of(group.cell)[i].metrics for i in (0, -1)]
        zeros = " to ".join(share(metrics[ZEROS].value) for metrics in ends) + " zeros"
        noise = "noise/signal " + " to ".join(shown(metrics[NOISE].value) for metrics in ends)
        parts.append(f"{group.names[0]}: {zeros}, {noise}")
    return "; ".join(parts)


def derived(record: Record) -> list[Derived]:
    """What follows for the demoted and for the promoted configuration, see ``forensics/h1/law.py``.

    The record derives zeros and noise of a bf16 KL on FP32 models at one KL, from the exact logits;
    the grid carries them along the curve. For rounded models it is the KL that they execute.
    """
    cells, decision = record.cells_of("H1"), record.thresholds["H1"]
    lines: list[Derived] = []
    demoted, promoted = (
        cells[name].shows(H1Evidence) if name in cells else H1Evidence()
        for name in (decision.demoted, decision.promoted)
    )
    zeros = demoted.log_ratio_near_zero_frac_predicted
    if zeros is not None and demoted.true_kl is not None:
        noise = math.hypot(*demoted.log_ratio_nsr_by_rounding.values())
        for key, function, value in (
            (ZEROS, law.zero_share, zeros),
            (NOISE, law.grid_noise, noise),
        ):
            step = law.step_for(function, demoted.true_kl, value)
            points = [(kl, function(kl, step)) for kl in _kls(demoted)]
            lines.append((decision.demoted, key, points))
    pair = promoted.true_kl, promoted.executed_kl
    if pair[0] and pair[1] and record.matrix[decision.promoted]["kl"] == "fp32":
        points = [(kl, law.model_noise(kl, pair[0], pair[1])) for kl in _kls(promoted)]
        lines.append((decision.promoted, NOISE, points))
    return lines


def _kls(evidence: H1Evidence) -> list[float]:
    return sorted(point.true_kl for point in evidence.curve)


@styled
def _figure(record: Record, found: list[Group], predictions: list[Derived]) -> Any:
    looks = appearance([g.names[0] for g in found], markers=True)
    figure, axes = new_figure(4.3, 1, 2)
    for axis, key in zip(axes[0], (ZEROS, NOISE), strict=True):
        scale = 100 if key == ZEROS else 1
        for group in found:
            points = curve_of(group.cell)
            kl, value = [p.true_kl for p in points], [scale * p.metrics[key].value for p in points]
            axis.plot(kl, value, label=group.label, **looks[group.names[0]])
        for name, metric, derived_points in predictions:
            if metric == key:
                axis.plot(
                    [x for x, _ in derived_points],
                    [scale * y for _, y in derived_points],
                    color="black",
                    linestyle=":",
                    linewidth=2.4,
                    alpha=0.55,
                    zorder=5,
                    label="derived" if name == predictions[0][0] else None,
                )
        axis.set_xscale("log")
        axis.set_xlabel("true KL, nats per token")
    axes[0, 0].set_ylabel("zero log-ratios, % of tokens")
    axes[0, 1].set_ylabel("noise / signal of the log-ratio (RMS / RMS)")
    axes[0, 1].set_yscale("log")
    limit_line(axes[0, 1], record.thresholds["H1"].limit)
    legend_below(figure, axes[0, 0], 4)
    return figure
