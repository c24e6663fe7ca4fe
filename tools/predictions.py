"""What one record predicts for another length, beside what a later record measured there.

`python -m tools.predictions BEFORE.json AFTER.json [BEFORE AFTER ...] --record FILE --into FILE.md`
carries every cell of BEFORE to the length of the same cell in AFTER, writes both to ``--record``
and the table to the document. With ``--into`` alone the table is made from the committed record.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.operating import MEASURED, OperatingPoint
from precision_lib.forensics.verdicts import INCONCLUSIVE
from precision_lib.jsonio import load_object, write_json
from precision_lib.recipes.damage import damages_of
from precision_lib.record.files import load_record
from precision_lib.record.record import Cell, Record
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from tools.documents import write_between

RECORD = Path("docs/records/recommendation/predictions.json")
HOW = "`python -m tools.predictions` writes one"
_KL = 1e-4

Row = dict[str, Any]


def predictions(before: Record, after: Record) -> list[Row]:
    """A row per cell that both records hold, where the law had to carry it."""
    rows = (_row(before, cell) for cell in after.cells if cell.key in before.by_key)
    return [row for row in rows if row["basis"] != MEASURED and row["from"]]


def _row(before: Record, cell: Cell) -> Row:
    final = cell.metrics[HYPOTHESES[cell.hypothesis].decision.metric]
    length = round(final.n / (final.clusters or 1))
    point = OperatingPoint("all", length, _KL, True, True, "group")
    (found,) = [
        d
        for d in damages_of(before, cell.configuration, point)
        if d.hypothesis == cell.hypothesis and d.carried is not None
    ]
    carried = found.carried
    assert carried is not None
    high = carried.damage.high if math.isfinite(carried.damage.high) else None
    predicted = {"value": carried.damage.value, "low": carried.damage.low, "high": high}
    measured = {"value": final.value, "low": final.low, "high": final.high}
    return {
        "hypothesis": cell.hypothesis,
        "configuration": cell.configuration,
        "from": carried.measured_at,
        "at": f"{length} response tokens",
        "basis": carried.basis,
        "predicted": predicted | {"verdict": found.verdict},
        "measured": measured | {"verdict": cell.verdict},
    }


def is_confirmed(row: Row) -> bool:
    """Whether the measured figure lies in the predicted interval."""
    predicted, value = row["predicted"], row["measured"]["value"]
    return bool(predicted["low"] <= value <= (predicted["high"] or math.inf))


def is_contradicted(row: Row) -> bool:
    """Whether a verdict was predicted and the opposite one measured."""
    verdicts = {row["predicted"]["verdict"], row["measured"]["verdict"]}
    return INCONCLUSIVE not in verdicts and len(verdicts) == 2


def prediction_table(rows: list[Row]) -> str:
    """The rows for a reader."""
    shown = [
        (
            f"{row['hypothesis']} `{row['configuration']}`",
            f"{row['from'].split()[0]} -> {row['at'].split()[0]}",
            _figure(row["predicted"]),
            _figure(row["measured"]),
            "yes" if is_confirmed(row) else "no",
        )
        for row in rows
    ]
    return table(("cell", "tokens", "predicted", "measured later", "inside"), shown, numbers=False)


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
