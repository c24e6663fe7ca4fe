"""Findings are what the records say: every cell, every verdict, and how the seeds agree."""

import copy
from typing import Any

import pytest

from precision_lib.compare.baseline import summary_of
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval, percent, two
from tests.unit import small_blocks as small
from tools.findings import findings
from tools.findings_tables import half_way


def metric(value: float) -> dict[str, Any]:
    return {"value": value, "low": value / 2, "high": value * 2, "n": 10, "unit": "x"}


def block(seed: int = 0) -> dict[str, Any]:
    """A record of two H9 cells, a hypothesis without tables of its own."""
    cells = [
        {
            "hypothesis": "H9",
            "configuration": name,
            "verdict": verdict,
            "metrics": {"damage": metric(value)},
            "evidence": {},
        }
        for name, verdict, value in (("bf16_pure", "impaired", 2.0), ("fp32", "healthy", 1e-6))
    ]
    return {
        "context": {
            "seed": seed,
            "checkpoint": {"name": "embedded"},
            "device": {"class": "cpu", "name": "a processor"},
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "commit": {"sha": "0123456789abcdef", "dirty": False},
        },
        "schema": 2,
        "run": "a",
        "matrix": {},
        "thresholds": {
            "H9": {
                "hypothesis": "H9",
                "metric": "damage",
                "title": "test",
                "limit": 0.3,
                **dict.fromkeys(("symptom", "meaning", "promoted", "demoted"), ""),
                "components": [],
            }
        },
        "cells": cells,
        "hypotheses": [
            {
                "hypothesis": "H9",
                "verdict": "refuted",
                "effect": 0.25,
                **{"effect_unit": "", "low": 0.1, "high": 0.5},
                "explanation": "Nothing happened.",
                "control": {"is_null": True},
                "contrasts": {
                    "promotion_damage_healed": metric(0.25),
                    "demotion_damage_added": metric(0.5),
                },
            }
        ],
    }


def shown(*blocks: dict[str, Any]) -> str:
    """The tables of a record and of what is kept of others."""
    record, *others = map(small.record, blocks)
    return findings(record, [summary_of(other) for other in others])


def test_every_cell_and_verdict_is_shown() -> None:
    text = shown(block())
    assert "| `bf16_pure` | 2.0 [1.0, 4.0] **impaired** |" in text
    assert "| `fp32` | 1.0e-06 [5.0e-07, 2.0e-06] healthy |" in text
    assert "| H9 test | **refuted** | 0.25 [0.12, 0.50] | 0.50 [0.25, 1.0] | null |" in text
    assert "- **H9**: Nothing happened." in text
    assert "commit 0123456789ab." in text
    assert "Other seeds" not in text


def test_a_control_that_is_not_null_is_shouted() -> None:
    loud = block()
    loud["hypotheses"][0]["control"]["is_null"] = False
    assert "**NOT NULL**" in shown(loud)


def test_seeds_that_disagree_are_seen() -> None:
    """The planted case and the clean one: a cell of seed 2 has another verdict."""
    other = copy.deepcopy(block(2))
    other["cells"][0]["verdict"] = "inconclusive"
    text = shown(block(), block(1), other)
    assert "| 1 | refuted, 0.25 | 2 of 2 |" in text
    assert "| 2 | refuted, 0.25 | 1 of 2 |" in text


def test_records_of_another_model_or_budget_are_refused() -> None:
    for change in ({"checkpoint": {"name": "other", "sha256": "1"}}, {"budget": "quick"}):
        other = block(1)
        other["context"] |= change
        with pytest.raises(ValueError, match=r"file 2 has another (model|budget)"):
            shown(block(), other)
    fewer = block(1)
    fewer["cells"].pop()
    with pytest.raises(ValueError, match="file 2 has another cells"):
        shown(block(), fewer)


def test_a_hypothesis_that_one_seed_lacks_leaves_its_place_empty() -> None:
    short = block(1)
    short["hypotheses"] = []
    assert "| 1 |  | 2 of 2 |" in shown(block(), short)


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2.0"), (63.4, "63"), (213.0, "2.1e+02"), (0.00016, "0.00016")]
)
def test_two_significant_digits(value: float, text: str) -> None:
    assert two(value) == text


def test_numbers_and_tables_by_hand() -> None:
    assert percent(0.2071) == "20.7 %"
    assert interval(small.typed(metric(1.0))) == "1.0 [0.50, 2.0]"
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_half_way_by_hand() -> None:
    assert half_way([1.0, 100.0], [0.0, 1.0]) == pytest.approx(10.0, rel=2**-48)
    assert half_way([1.0, 100.0], [0.6, 1.0]) is None, "from the start is no crossing"
    assert half_way([1.0, 100.0], [0.1, 0.2]) is None
