"""Four plots of a disagreement: by probability, by place, its shape, by length."""

from typing import Any

from precision_lib.mismatch import curves
from precision_lib.mismatch.schema import Dump
from precision_lib.reporting.plots.appearance import COLOURS, legend_below, new_figure, styled

_PANELS = (
    (curves.by_probability, "probability of the token", "RMS of d, nats", False),
    (curves.by_place, "place in the response, tokens", "RMS of d, nats", False),
    (curves.shape, "d / (1 - p), robust standard deviations", "density", False),
    (curves.by_length, "tokens summed", "RMS of the summed d, nats", True),
)


@styled
def mismatch_figure(dump: Dump) -> Any:
    """One figure with four panels: measured, and what rounding noise of this size would give."""
    figure, axes = new_figure(5.4, 2, 2)
    for axis, (curve_of, across, up, logarithmic) in zip(axes.flat, _PANELS, strict=True):
        curve = curve_of(dump)
        axis.plot(curve.x, curve.y, color=COLOURS[5], marker="o", label="measured")
        axis.plot(curve.x, curve.law, color="black", linestyle="--", label="law of rounding")
        axis.set(xlabel=across, ylabel=up)
        if logarithmic:
            axis.set(xscale="log", yscale="log")
        elif curve_of is not curves.shape:
            axis.set_ylim(bottom=0)
    legend_below(figure, axes[0, 0], 2)
    return figure
