"""The gate on a sweep: a lost gain, a run that fails, another sweep; on the committed one.

The hazard. A few seeds scatter by half of the gain, so a gate on the mean is red by chance, and
one that looks at the mean alone passes a run that diverged.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from precision_lib.compare.baseline import BaselineError
from precision_lib.compare.comparison import Comparison
from tests.unit.small_blocks import judge, known

ROOT = Path(__file__).parents[3]
SWEEP = json.loads((ROOT / "docs" / "records" / "sweep" / "sweep.json").read_text())


def block(training: dict[str, Any]) -> dict[str, Any]:
    """The ``precision`` block of a run that was a sweep."""
    return {
        "schema": 2,
        "run": "a",
        "hypotheses": [],
        "cells": [],
        "context": SWEEP["context"],
        "matrix": SWEEP["matrix"],
        "thresholds": {},
        "training": training,
    }


@cache
def committed() -> dict[str, Any]:
    return known(block(SWEEP))


def judged(training: dict[str, Any]) -> Comparison:
    return judge(block(training), committed())


def changed(configuration: str, lost: float = 0.0, status: str = "") -> dict[str, Any]:
    """The committed sweep with a share of the gain lost, or a run that ended otherwise."""
    sweep: dict[str, Any] = copy.deepcopy(SWEEP)
    [cell] = [c for c in sweep["evidence"]["cells"] if c["configuration"] == configuration]
    for name in ("value", "low", "high"):
        cell["metrics"]["objective_gain_lost"][name] += lost
    if status:
        cell["statuses"]["0"] = status
    return sweep


def test_the_same_sweep_is_green() -> None:
    found = judged(SWEEP)
    assert found.verdict == "no regression"
    cells = SWEEP["evidence"]["cells"]
    with_damage = [c for c in cells if "objective_gain_lost" in c["metrics"]]
    assert found.compared == len(cells) + len(with_damage) > 10


def test_a_gain_that_is_lost_is_a_regression_beyond_both_intervals() -> None:
    assert judged(changed("bf16_pure", lost=0.1)).verdict == "no regression"
    found = judged(changed("bf16_pure", lost=1.5))
    [change] = found.worse
    assert (change.where, change.metric) == ("training", "objective_gain_lost")
    assert change.before < change.limit < change.after  # type: ignore[operator]
    assert "training bf16_pure: objective_gain_lost -0.1353 -> 1.365" in change.message
    assert [c.metric for c in judged(changed("bf16_pure", lost=-1.5)).better]


def test_a_run_that_fails_now_is_a_regression() -> None:
    [change] = judged(changed("bf16_fp32_kl", status="nan_loss")).worse
    assert change.message.startswith("training bf16_fp32_kl: failed_runs 0 -> 0.1667")
    failed = known(block(changed("bf16_fp32_kl", status="nan_loss")))
    [better] = judge(block(SWEEP), failed).better
    assert better.metric == "failed_runs"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_steps": 20}, "other sweep: its max_steps are 20, the baseline's 150"),
        ({"settings": SWEEP["settings"] | {"lam": 0.9}}, "other sweep: its settings are"),
        ({"complete": False}, "incomplete: runs of the sweep did not end"),
    ],
)
def test_another_sweep_is_inconclusive(change: dict[str, Any], sentence: str) -> None:
    found = judged(SWEEP | change)
    assert found.verdict == "inconclusive"
    assert any(text.startswith(sentence) for text in found.inconclusive)


def test_an_option_that_is_off_is_as_none_of_an_earlier_release() -> None:
    off = {"settings": SWEEP["settings"] | {"option_of_tomorrow": None}}
    assert judged(SWEEP | off).verdict == "no regression"
    on = {"settings": SWEEP["settings"] | {"option_of_tomorrow": 2.0}}
    assert judged(SWEEP | on).verdict == "inconclusive"


def test_fewer_seeds_and_fewer_configurations_are_inconclusive() -> None:
    sweep = copy.deepcopy(SWEEP)
    dropped = sweep["evidence"]["cells"].pop()["configuration"]
    del sweep["evidence"]["cells"][0]["statuses"]["0"]
    found = judged(sweep)
    assert found.verdict == "inconclusive"
    text = "; ".join(found.inconclusive)
    assert f"only one of the two trained {dropped}" in text
    assert "fewer elements: 5 runs of fp32_twin, the baseline has 6" in text


def test_a_run_without_a_sweep_does_not_pass_for_one() -> None:
    assert "the run holds no sweep" in judged({}).inconclusive[-1]
    with pytest.raises(BaselineError, match="not complete"):
        known(block(SWEEP | {"complete": False}))
