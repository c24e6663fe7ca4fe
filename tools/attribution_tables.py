"""Attributions of several models side by side, for docs/findings.md."""

from pathlib import Path
from typing import Any

from precision_lib.jsonio import load_object
from precision_lib.phases.attribute import SCHEMA
from precision_lib.reporting.attribution import ordered, rms, share
from precision_lib.reporting.markdown import table

Record = dict[str, Any]


def load_attributions(directory: Path) -> list[Record]:
    """The attributions of ``directory``, in the order of their file names.

    Raises:
        ValueError: there is none, or a file is of something else; the message says what to do.
    """
    how = "`precision-forensics attribute` writes one"
    paths = sorted(directory.glob("*.json"))
    records = [load_object(path, "attribution", how) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if record.get("schema") != SCHEMA:
            raise ValueError(f"{path} is no record of an attribution ({SCHEMA}); {how}")
    if not records:
        raise ValueError(f"{directory} holds no attribution; {how}")
    return records


def attribution_table(records: list[Record]) -> str:
    """A column per model: the share of each kind, demoted alone, and what the layers make."""
    shares = [
        {part["name"]: share(part["demoted"]) for part in record["kinds"]["parts"]}
        for record in records
    ]
    rows = [
        (part["name"], *(model.get(part["name"], "") for model in shares))
        for part in ordered(records[-1]["kinds"])
    ]
    rows.append(("*remainder*", *(share(r["kinds"]["remainder"]) for r in records)))
    rows.append(("*all layers together*", *map(_layers, records)))
    rows.append(("*the worst layer*", *map(_worst, records)))
    rows.append(("*the whole, nats RMS*", *(rms(r["power"]) for r in records)))
    rows.append(("*response tokens*", *(f"{r['power']['n']:,}" for r in records)))
    names = [record["context"]["checkpoint"]["name"] for record in records]
    return table(("demoted alone, share of the error power [95 %]", *names), rows)


def _inside(record: Record) -> list[dict[str, Any]]:
    return [p for p in ordered(record["layers"]) if p["name"].startswith("layer ")]


def _layers(record: Record) -> str:
    return f"{100 * sum(p['demoted']['value'] for p in _inside(record)):.0f} %"


def _worst(record: Record) -> str:
    worst = _inside(record)[0]
    return f"{worst['name']} of {len(_inside(record))}: {share(worst['demoted'])}"
