"""Error power of a log-prob by kind of module and by layer, demoted and promoted alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from precision_lib.attribution.breakdown import Part
from precision_lib.forensics.statistics import Metric
from precision_lib.record.attribution import AttributionRecord
from precision_lib.reporting.attribution import HEADINGS, attribution_sentences, part_row
from precision_lib.reporting.plots.appearance import COLOURS, new_figure, styled
from precision_lib.reporting.plots.picture import Picture, Table

NAME = "attribution"
_LOOKS = {
    "demoted": {"color": COLOURS[4], "marker": "o", "label": "demoted alone: share that it makes"},
    "promoted": {"color": COLOURS[5], "marker": "D", "label": "promoted alone: share taken away"},
}


def attribution_picture(record: AttributionRecord) -> Picture:
    """A panel by kind, the largest on top, and one by layer in their order."""
    parts = [*([record.kinds.by_size] if record.kinds else []), record.layers.parts]
    rows = tuple(part_row(part) for panel in parts for part in panel)
    return Picture(
        NAME,
        _figure(parts),
        "Share of the error power of a log-prob, percent, by part of the model, with 95 % "
        "intervals over prompts. Both marks agree where errors are independent.",
        " ".join(attribution_sentences(record)),
        Table(("part", *HEADINGS), rows),
    )


@styled
def _figure(panels: Sequence[Sequence[Part]]) -> Any:
    longest = max(map(len, panels))
    figure, axes = new_figure(1.3 + 0.17 * longest, 1, len(panels))
    for axis, parts in zip(axes[0], panels, strict=True):
        for offset, (name, look) in zip((-0.15, 0.15), _LOOKS.items(), strict=True):
            _points(axis, [getattr(part, name) for part in parts], offset, look)
        axis.set_yticks(range(len(parts)), [part.name for part in parts])
        axis.set(xlabel="share of the error power, %", ylim=(len(parts) - 0.4, -0.6))
        axis.axvline(0, color="black", linewidth=0.6)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _points(axis: Any, metrics: list[Metric], offset: float, look: Mapping[str, str]) -> None:
    values = [100 * m.value for m in metrics]
    low = [max(0.0, 100 * (m.value - m.low)) for m in metrics]
    high = [max(0.0, 100 * (m.high - m.value)) for m in metrics]
    places = [place + offset for place in range(len(metrics))]
    axis.errorbar(values, places, xerr=(low, high), linestyle="", elinewidth=0.9, **look)
