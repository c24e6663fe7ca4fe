"""The figures of docs/recipes.md are those of the committed records, and predictions can fail."""

import copy
import re
from typing import Any

import pytest

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.jsonio import load_object
from precision_lib.recipes.damage import NOT_MEASURED
from precision_lib.reporting.numbers import two
from tests.unit.repository.test_readme_figures import RECORDS, between, document
from tools.predictions import HOW, Row, is_confirmed, is_contradicted, prediction_table

ROWS = load_object(RECORDS / "recommendation" / "predictions.json", "record of predictions", HOW)[
    "predictions"
]

ANSWER, SHORTER = (
    load_object(RECORDS / "recommendation" / name, "recommendation", "recommend writes one")
    for name in ("embedded_quick.json", "embedded_whole_1024.json")
)


def is_inside(row: Row) -> bool:
    """Whether the measured value lies inside the predicted interval, which has an end."""
    predicted = row["predicted"]
    return bool(predicted["low"] <= row["measured"]["value"] <= predicted["high"])


def figure(of: dict[str, Any]) -> str:
    """A value with its interval."""
    return f"{two(of['value'])} [{two(of['low'])}, {two(of['high'])}]"


def test_the_table_is_the_records() -> None:
    assert between(document("docs/recipes.md"), "predictions") == prediction_table(ROWS)


def test_the_sentence_counts_what_the_record_confirms() -> None:
    text = re.sub(r"\s+", " ", document("docs/recipes.md"))
    confirmed = sum(map(is_confirmed, ROWS))
    assert f"In {confirmed} of {len(ROWS)} rows the intervals overlap" in text
    inside = sum(map(is_inside, ROWS))
    assert f"In {inside} of {len(ROWS)} rows the measured value lies inside" in text
    assert inside < confirmed, "the first criterion is the harder one"
    assert not any(map(is_contradicted, ROWS))


def test_the_figures_of_what_was_found_are_the_records() -> None:
    text = re.sub(r"\s+", " ", document("docs/recipes.md"))
    names = ("fp16_pure", "fp16_fp32_kl")
    quick = {r["name"]: r["damage"]["H1"] for r in ANSWER["recipes"]}
    whole = {
        r["configuration"]: r["measured"]
        for r in ROWS
        if r["hypothesis"] == "H1" and r["at"].endswith("e-04")
    }
    pure, with_kl = (figure(quick[name]) for name in names)
    assert f"its noise is {pure} of the signal, with an FP32 KL {with_kl}: undecided" in text
    pure, with_kl = (figure(whole[name]) for name in names)
    assert f"By the whole budget it is {pure} and {with_kl}: healthy" in text
    assert {quick[name]["verdict"] for name in names} == {"inconclusive"}
    drift = next(r["measured"] for r in ROWS if r["hypothesis"] == "H4")
    assert f"(H4: {figure(drift)})" in text
    (chosen,) = [r for r in ANSWER["recipes"] if r["name"] == ANSWER["recommended"]]
    assert chosen["name"] == "fp32_bf16_reward"
    assert f"at {two(chosen['cost']['time'])} times the products" in text
    assert {"fp16_pure", "fp16_fp32_kl"} == set(ANSWER["cheaper_undecided"])
    assert (ANSWER["point"]["length"], SHORTER["point"]["length"]) == (2048, 1024)
    assert f"Up to 1,024 tokens `{SHORTER['recommended']}` is recommended" in text


@pytest.mark.parametrize("name", ["embedded_quick", "embedded_whole_1024", "smollm2_quick_255"])
def test_every_hypothesis_counts_in_a_committed_answer(name: str) -> None:
    path = RECORDS / "recommendation" / f"{name}.json"
    recipes = load_object(path, "recommendation", "recommend writes one")["recipes"]
    assert recipes
    for recipe in recipes:
        assert set(recipe["damage"]) == set(HYPOTHESES)
        assert NOT_MEASURED not in {damage["verdict"] for damage in recipe["damage"].values()}


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


def test_the_answer_for_the_real_model_is_the_records() -> None:
    path = RECORDS / "recommendation" / "smollm2_quick_255.json"
    answer = load_object(path, "recommendation", "recommend writes one")
    assert (answer["verdict"], answer["recommended"]) == ("recommended", "fp32_bf16_reward")
    [chosen] = [r for r in answer["recipes"] if r["name"] == answer["recommended"]]
    assert f"at {chosen['cost']['time']:.0f} times the products of" in document("docs/recipes.md")
