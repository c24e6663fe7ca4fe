"""What one record predicts for another length or KL, beside what a later record measured there.

`python -m tools.predictions BEFORE.json AFTER.json [BEFORE AFTER ...]` carries cells of BEFORE to
where AFTER measured the same cells, and writes both to ``--record`` and the table to the document.
Without records the table is made from the committed record.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from precision_lib.forensics.evidence import H1Evidence
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.operating import MEASURED, OperatingPoint
from precision_lib.forensics.verdicts import INCONCLUSIVE, Cell
from precision_lib.jsonio import load_object, write_json
from precision_lib.recipes.damage import Damage, damages_of
from precision_lib.record.files import load_record
from precision_lib.record.record import Record
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from tools.documents import write_between

RECORD = Path("docs/records/recommendation/predictions.json")
HOW = "`python -m tools.predictions` writes one"
#: Recipes that no committed record held when they were predicted.
NEW = ("fp16_pure", "fp16_fp32_kl")

Row = dict[str, Any]


def predictions(before: Record, after: Record, configurations: Sequence[str] = NEW) -> list[Row]:
    """A row per cell and point that ``after`` measured and the law had to carry ``before`` to."""
    cells = [c for c in after.cells if c.configuration in configurations and c.key in before.by_key]
    rows = [
        _row(cell, words, _at(before, cell, point), _at(after, cell, measured))
        for cell in cells
        for words, point, measured in _points(cell)
    ]
    return [row for row in rows if row["from"] and row["basis"] != MEASURED]


def _points(cell: Cell) -> Iterator[tuple[str, OperatingPoint, OperatingPoint]]:
    """(in words, to ask the earlier record, to ask the later one) where a cell was measured."""
    final = cell.metrics[HYPOTHESES[cell.hypothesis].decision.metric]
    length = round(final.n / (final.clusters or 1))
    point = OperatingPoint("all", length, 1e-4, True, True, "group")
    if not isinstance(cell.evidence, H1Evidence):
        yield f"{length} response tokens", point, point
        return
    for at in cell.evidence.curve:
        words = f"a true KL of {at.true_kl:.1e}"
        yield words, replace(point, kl=at.true_kl), replace(point, kl=at.target_kl)


def _at(record: Record, cell: Cell, point: OperatingPoint) -> Damage:
    damages = damages_of(record, cell.configuration, point)
    return next(d for d in damages if d.hypothesis == cell.hypothesis)


def _row(cell: Cell, words: str, predicted: Damage, measured: Damage) -> Row:
    assert predicted.carried is not None
    return {
        "hypothesis": cell.hypothesis,
        "configuration": cell.configuration,
        "from": predicted.carried.measured_at,
        "at": words,
        "basis": predicted.carried.basis,
        "predicted": _plain(predicted),
        "measured": _plain(measured),
    }


def _plain(damage: Damage) -> Row:
    assert damage.carried is not None
    figure = damage.carried.damage
    high = figure.high if math.isfinite(figure.high) else None
    return {"value": figure.value, "low": figure.low, "high": high, "verdict": damage.verdict}


def is_confirmed(row: Row) -> bool:
    """Whether the predicted and the measured interval overlap."""
    predicted, measured = row["predicted"], row["measured"]
    end = math.inf if predicted["high"] is None else predicted["high"]
    return bool(predicted["low"] <= measured["high"] and measured["low"] <= end)


def is_contradicted(row: Row) -> bool:
    """Whether a verdict was predicted and the opposite one measured."""
    verdicts = {row["predicted"]["verdict"], row["measured"]["verdict"]}
    return INCONCLUSIVE not in verdicts and len(verdicts) == 2


def prediction_table(rows: list[Row]) -> str:
    """The rows for a reader."""
    shown = [
        (
            f"{row['hypothesis']} `{row['configuration']}`",
            row["at"],
            f"{row['basis']} from {row['from']}",
            _figure(row["predicted"]),
            _figure(row["measured"]),
            "yes" if is_confirmed(row) else "no",
        )
        for row in rows
    ]
    return table(
        ("cell", "at", "how", "predicted", "measured later", "overlap"), shown, numbers=False
    )


def _figure(figure: Row) -> str:
    high = two(figure["high"]) if figure["high"] is not None else "unbounded"
    return f"{two(figure['value'])} [{two(figure['low'])}, {high}] {figure['verdict']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="*", metavar="BEFORE AFTER")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--into", type=Path, default=Path("docs/recipes.md"))
    options = parser.parse_args()
    if options.records:
        pairs = zip(options.records[::2], options.records[1::2], strict=True)
        made = [predictions(load_record(a), load_record(b)) for a, b in pairs]
        write_json(options.record, {"predictions": [row for rows in made for row in rows]})
    rows = load_object(options.record, "record of predictions", HOW)["predictions"]
    write_between(options.into, "predictions", prediction_table(rows))


if __name__ == "__main__":
    main()
