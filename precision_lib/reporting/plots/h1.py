"""H1: the collapse curve. What each configuration sees of a policy that moves away by a known KL.

Zeros and noise are drawn over six decades of the KL, beside what theory gives.
"""

import math
from typing import Any

from precision_lib.forensics.h1 import law
from precision_lib.reporting.plots.appearance import (
    appearance,
    legend_below,
    limit_line,
    new_figure,
    styled,
)
from precision_lib.reporting.plots.cells import (
    Block,
    Group,
    cells_of,
    groups,
    number,
    same_as,
    share,
    shown,
)
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "h1_collapse_curve"
ZEROS, NOISE = "log_ratio_near_zero_frac", "log_ratio_nsr"
#: Derived curves: what they are of, metric, and the points as (KL, value).
Derived = tuple[str, str, list[tuple[float, float]]]


def collapse_curve(block: Block) -> Picture:
    """Zero log-ratios and noise over signal against the true KL, measured and derived."""
    found, predictions = groups(block, "H1"), derived(block)
    kls = [p["true_kl"] for p in _curve(found[0])]
    rows = [
        (g.names[0], what, *(form(p[key]["value"]) for p in _curve(g)))
        for what, key, form in (("zeros", ZEROS, share), ("noise/signal", NOISE, shown))
        for g in found
    ]
    for name, key, points in predictions:
        what, form = ("zeros", share) if key == ZEROS else ("noise/signal", shown)
        rows.append((f"{name}, derived", what, *(form(value) for _, value in points)))
    said = (
        "Dotted: derived, not fitted to these points (specification, section 4)."
        if predictions
        else "The record holds nothing that a prediction could be derived from."
    )
    return Picture(
        NAME,
        _figure(block, found, predictions),
        "Left, the symptom: share of response tokens whose log-ratio is zero. Right, the damage: "
        "RMS error of the log-ratio over its RMS. Both against the true KL between policy and "
        f"reference, nats per token, full vocabulary, float64. {said} {same_as(found)}",
        f"Share of zero log-ratios, and noise over signal, over a true KL of {kls[0]:.0e} to "
        f"{kls[-1]:.0e}. {_in_words(found)}",
        Table(("configuration", "", *(f"KL {kl:.1e}" for kl in kls)), tuple(rows)),
    )


def _in_words(found: list[Group]) -> str:
    """Both figures of each configuration from the smallest KL to the largest."""
    parts = []
    for group in found:
        first, last = _curve(group)[0], _curve(group)[-1]
        zeros = f"{share(first[ZEROS]['value'])} to {share(last[ZEROS]['value'])} zeros"
        noise = f"noise/signal {shown(first[NOISE]['value'])} to {shown(last[NOISE]['value'])}"
        parts.append(f"{group.names[0]}: {zeros}, {noise}")
    return "; ".join(parts)


def _curve(group: Group) -> list[dict[str, Any]]:
    return sorted(group.cell["evidence"]["curve"], key=lambda p: number(p["true_kl"]))


def derived(block: Block) -> list[Derived]:
    """What follows for the demoted and for the promoted configuration, see ``forensics/h1/law.py``.

    The record derives zeros and noise of a bf16 KL on FP32 models at one KL, from the exact logits;
    the grid carries them along the curve. For rounded models it is the KL that they execute.
    """
    cells, decision = cells_of(block, "H1"), block["thresholds"]["H1"]
    lines: list[Derived] = []
    demoted = cells.get(decision["demoted"], {}).get("evidence", {})
    if "log_ratio_near_zero_frac_predicted" in demoted:
        kl, name = demoted["true_kl"], decision["demoted"]
        noise = math.hypot(*demoted["log_ratio_nsr_by_rounding"].values())
        for key, function, value in (
            (ZEROS, law.zero_share, demoted["log_ratio_near_zero_frac_predicted"]),
            (NOISE, law.grid_noise, noise),
        ):
            step = law.step_for(function, kl, value)
            kls = [p["true_kl"] for p in demoted["curve"]]
            lines.append((name, key, [(x, function(x, step)) for x in sorted(kls)]))
    promoted = cells.get(decision["promoted"], {}).get("evidence", {})
    if "executed_kl" in promoted and block["matrix"][decision["promoted"]]["kl"] == "fp32":
        pair = promoted["true_kl"], promoted["executed_kl"]
        points = sorted(p["true_kl"] for p in promoted["curve"])
        lines.append(
            (decision["promoted"], NOISE, [(x, law.model_noise(x, *pair)) for x in points])
        )
    return lines


@styled
def _figure(block: Block, found: list[Group], predictions: list[Derived]) -> Any:
    looks = appearance([g.names[0] for g in found], markers=True)
    figure, axes = new_figure(4.3, 1, 2)
    for axis, key in zip(axes[0], (ZEROS, NOISE), strict=True):
        scale = 100 if key == ZEROS else 1
        for group in found:
            kl = [number(p["true_kl"]) for p in _curve(group)]
            value = [scale * number(p[key]["value"]) for p in _curve(group)]
            axis.plot(kl, value, label=group.label, **looks[group.names[0]])
        for name, metric, points in predictions:
            if metric == key:
                drawn = [scale * value for _, value in points]
                axis.plot(
                    [x for x, _ in points],
                    drawn,
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
    limit_line(axes[0, 1], block["thresholds"]["H1"]["limit"])
    legend_below(figure, axes[0, 0], 4)
    return figure
