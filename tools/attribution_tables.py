"""Attributions of several models side by side, for docs/findings.md."""

from pathlib import Path

from precision_lib.attribution.breakdown import Part
from precision_lib.record.attribution import AttributionRecord, load_attribution
from precision_lib.reporting.attribution import rms, share
from precision_lib.reporting.markdown import table


def load_attributions(directory: Path) -> list[AttributionRecord]:
    """The attributions of ``directory``, in the order of their file names.

    Raises:
        ValueError: there is none, or a file is of something else; the message says what to do.
    """
    records = [load_attribution(path) for path in sorted(directory.glob("*.json"))]
    if not records:
        raise ValueError(
            f"{directory} holds no attribution; `precision-forensics attribute` writes one"
        )
    return records


def attribution_table(records: list[AttributionRecord]) -> str:
    """A column per model: the share of each kind, demoted alone, and what the layers make."""
    kinds = [record.kinds for record in records if record.kinds]
    shares = [{part.name: share(part.demoted) for part in of.parts} for of in kinds]
    rows = [
        (part.name, *(model.get(part.name, "") for model in shares)) for part in kinds[-1].by_size
    ]
    rows.append(("*remainder*", *(share(of.remainder) for of in kinds)))
    rows.append(("*all layers together*", *map(_layers, records)))
    rows.append(("*the worst layer*", *map(_worst, records)))
    rows.append(("*the whole, nats RMS*", *(rms(r.power) for r in records)))
    rows.append(("*response tokens*", *(f"{r.power.n:,}" for r in records)))
    names = [record.context.model_name for record in records]
    return table(("demoted alone, share of the error power [95 %]", *names), rows)


def _inside(record: AttributionRecord) -> list[Part]:
    return [part for part in record.layers.by_size if part.name.startswith("layer ")]


def _layers(record: AttributionRecord) -> str:
    return f"{100 * sum(part.demoted.value for part in _inside(record)):.0f} %"


def _worst(record: AttributionRecord) -> str:
    worst = _inside(record)[0]
    return f"{worst.name} of {len(_inside(record))}: {share(worst.demoted)}"
