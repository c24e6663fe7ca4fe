"""The committed baseline: of this matrix and this budget, and each of its limits can be passed.

The hazard. A limit of minus infinity, or of a share below 0, is never passed, and its metric is
gated in name only; a baseline of an older budget makes every run inconclusive on the day somebody
needs it.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from precision_lib.conformance.checks import checks
from precision_lib.forensics.budget import budget
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.jsonio import to_plain
from precision_lib.matrix import all_configurations
from precision_lib.records.baseline import load_baseline, write_baseline
from precision_lib.records.cell_changes import noise_floor
from precision_lib.records.directions import direction, worst_possible
from precision_lib.records.gate import judge
from precision_lib.records.margins import is_beyond, margin

FILE = Path(__file__).parents[3] / "baselines" / "cpu.json"
BASELINE = load_baseline(FILE)
GATED = [
    (hypothesis, configuration, metric)
    for hypothesis, cells in BASELINE["cells"].items()
    for configuration, cell in cells.items()
    for metric in cell["metrics"]
    if direction(hypothesis, metric).scale
]


def block() -> dict[str, Any]:
    """The ``precision`` block of the run behind the baseline, as far as the gate reads it."""
    return {
        "context": BASELINE["context"] | {"device": {"class": "cpu"}},
        "matrix": BASELINE["matrix"],
        "thresholds": {h: asdict(d) for h, d in DECISIONS.items()},
        "noise_floors": BASELINE["noise_floors"],
        "expected": [[h, c] for h, cells in BASELINE["cells"].items() for c in cells],
        "cells": [
            {
                "hypothesis": hypothesis,
                "configuration": configuration,
                "evidence": {"true_kl": cell.get("true_kl")},
                **cell,
            }
            for hypothesis, cells in BASELINE["cells"].items()
            for configuration, cell in cells.items()
        ],
        "conformance": BASELINE["conformance"],
    }


def test_it_is_no_worse_than_itself() -> None:
    judgement = judge(block(), BASELINE)
    assert not (judgement.obstacles)
    assert not (judgement.regressions)
    assert not judgement.improvements
    functions = len(BASELINE["conformance"]["functions"])
    assert judgement.compared == len(GATED) + functions
    assert judgement.blind == ()


@pytest.mark.parametrize(("hypothesis", "configuration", "metric"), GATED)
def test_its_limits_can_be_passed(hypothesis: str, configuration: str, metric: str) -> None:
    found = BASELINE["cells"][hypothesis][configuration]["metrics"][metric]
    how = direction(hypothesis, metric)
    floor = noise_floor(hypothesis, configuration, metric, block(), BASELINE)
    limit = margin(found, found, how, len(GATED), floor).limit
    worst = worst_possible(metric, found["unit"])
    assert is_beyond(worst, limit, how.worse), f"limit {limit}, worst {worst}"


def test_it_is_of_the_present_matrix_budget_and_checks() -> None:
    now = {c.name: c.components for c in all_configurations(None)}
    assert BASELINE["matrix"] == now
    whole = budget()
    context = BASELINE["context"]
    assert context["budget"] == "whole"
    assert context["probe"] == to_plain(asdict(whole.settings["H1"]))
    assert context["h3"] == to_plain(asdict(whole.settings["H3"]))
    frozen = context["trajectories"]["settings"]
    assert frozen["max_new_tokens"] == whole.freeze.max_new_tokens
    tests = {name: f["tests"] for name, f in BASELINE["conformance"]["functions"].items()}
    mine = [check.function for check in checks()]
    assert tests == {name: mine.count(name) for name in set(mine)}


def test_it_is_of_a_clean_commit() -> None:
    assert BASELINE["context"]["commit"]["dirty"] is False


def test_it_is_written_as_it_would_be_now(tmp_path: Path) -> None:
    write_baseline(tmp_path / "cpu.json", BASELINE)
    assert (tmp_path / "cpu.json").read_bytes() == FILE.read_bytes()
