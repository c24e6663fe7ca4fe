"""The figures of docs/recipes.md are those of the committed records, and predictions can fail."""

import copy
import re

from precision_lib.jsonio import load_object
from tests.unit.repository.test_readme_figures import RECORDS, between, document
from tools.predictions import HOW, is_confirmed, is_contradicted, prediction_table

ROWS = load_object(RECORDS / "recommendation" / "predictions.json", "record of predictions", HOW)[
    "predictions"
]


def test_the_table_is_the_records() -> None:
    assert between(document("docs/recipes.md"), "predictions") == prediction_table(ROWS)


def test_the_sentence_counts_what_the_record_confirms() -> None:
    text = re.sub(r"\s+", " ", document("docs/recipes.md"))
    confirmed = sum(map(is_confirmed, ROWS))
    assert f"In {confirmed} of {len(ROWS)} rows the intervals overlap" in text
    assert not any(map(is_contradicted, ROWS))


def test_a_prediction_that_fails_is_seen() -> None:
    row = copy.deepcopy(next(row for row in ROWS if is_confirmed(row)))
    row["measured"] |= {"low": row["predicted"]["low"] / 3, "high": row["predicted"]["low"] / 2}
    assert not is_confirmed(row)
    row["predicted"]["verdict"], row["measured"]["verdict"] = "healthy", "impaired"
    assert is_contradicted(row)
    row["predicted"]["verdict"] = "inconclusive"
    assert not is_contradicted(row)


def test_an_interval_without_an_end_confirms_whatever_is_larger() -> None:
    row = copy.deepcopy(ROWS[0])
    row["predicted"]["high"] = None
    row["measured"] |= {"low": 1e9, "high": 1e10}
    assert is_confirmed(row)
