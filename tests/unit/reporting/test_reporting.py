"""The summary shows symptom beside damage, verdicts in words, and what is missing."""

from dataclasses import asdict
from typing import Any

from precision_lib.forensics.h1.declaration import H1
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.matrix import MATRIX
from precision_lib.reporting.styles import STYLES
from precision_lib.reporting.table import conformance_table, h1_table, summary

CURVE = [
    {"true_kl": kl, "log_ratio_nsr": {"value": value}}
    for kl, value in ((1.1e-4, 2.2), (1.0e-8, 187.0), (1.2e-2, 0.23))
]


def block(**changes: Any) -> dict[str, Any]:
    values = {
        name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "unit": ""} for name in H1.metrics
    }
    cells = [
        {
            "hypothesis": "H1",
            "configuration": c.name,
            "verdict": "healthy" if c.name == "fp32_baseline" else "impaired",
            "metrics": values,
            "evidence": {"true_kl": 1.1e-4, "curve": CURVE},
        }
        for c in MATRIX
    ]
    verdict = {
        "hypothesis": "H1",
        "verdict": "partly supported",
        "explanation": "The symptom went, the damage stayed.",
        "control": {"is_null": True},
    }
    return {
        "matrix": {c.name: c.components for c in MATRIX},
        "thresholds": {h: asdict(decision) for h, decision in DECISIONS.items()},
        "noise_floors": {"H1": {"bf16_pure": {"value": 1e-5}}},
        "cells": cells,
        "hypotheses": [verdict],
        "expected": [["H1", c.name] for c in MATRIX],
        "complete": True,
        "context": {"checkpoint": {"name": "embedded"}},
        "planted_fault": None,
    } | changes


def test_every_configuration_has_a_row_with_its_verdict_and_style() -> None:
    lines = h1_table(block())
    for configuration in MATRIX:
        [(text, style)] = [x for x in lines if x[0].startswith(configuration.name + " ")]
        verdict = text.split()[-1]
        assert style == STYLES[verdict]
        assert "0.50 [0.40, 0.60]" in text
        assert "50.0%" in text


def test_rows_are_aligned_and_fit_a_terminal() -> None:
    starts = ("configuration", "bf16", "fp32", "mix")
    golden = {"value": 1.5e-4, "low": 1.4e-4, "high": 1.6e-4, "n": 100, "unit": ""}
    cells = block()["cells"]
    cells[-1]["metrics"] = {**cells[-1]["metrics"], "log_ratio_nsr": golden}
    rows = [text for text, _ in h1_table(block(cells=cells)) if text.startswith(starts)]
    assert len({row.rindex("  ") for row in rows}) == 1, rows
    assert max(map(len, rows)) <= 120


def test_the_hypothesis_verdict_and_its_explanation_are_shown() -> None:
    text = "\n".join(t for t, _ in summary(block(), details=True))
    assert "H1: partly supported (controls null, as it must be)" in text
    assert "The symptom went, the damage stayed." in text
    assert "true KL of 1.10e-04 nats/token, 100 tokens" in text


def test_a_control_that_is_not_null_is_shouted() -> None:
    verdict = {**block()["hypotheses"][0], "control": {"is_null": False}}
    assert any("NOT NULL" in t for t, _ in summary(block(hypotheses=[verdict])))


def test_the_collapse_curve_is_in_the_order_of_the_true_kl() -> None:
    lines = [text.split() for text, _ in summary(block(), details=True)]
    assert ["configuration", "1.0e-08", "1.1e-04", "1.2e-02"] in lines
    assert ["bf16_pure", "1.9e+02", "2.2", "0.23"] in lines


def test_missing_cells_are_named() -> None:
    lines = summary(block(cells=block()["cells"][:-1], complete=False))
    assert ("INCOMPLETE: not measured: H1 fp32_baseline", "red") in lines


def test_a_planted_fault_is_shouted() -> None:
    lines = summary(block(planted_fault="shift_off_by_one"))
    assert lines[-1][0].startswith("PLANTED FAULT: shift_off_by_one")


def test_a_run_that_measured_nothing_has_no_summary() -> None:
    assert summary(block(cells=[])) == []


CONFORMANCE = {
    "target": "their_core",
    "not_offered": ["gae"],
    "functions": {
        "whiten": {
            "tests": 47,
            "failed": ["test_values_are_within_their_bound[whiten-constant-bf16]"],
            "inputs": 1100,
            "compared": 10690,
            "worst_over_limit": 0.048,
        }
    },
}


def test_the_conformance_table_counts_and_marks_what_failed_and_what_is_missing() -> None:
    lines = conformance_table({"conformance": CONFORMANCE})
    assert ("conformance of their_core to FP32", "") in lines
    (row,) = [(text.split(), style) for text, style in lines if text.startswith("whiten")]
    assert row == (["whiten", "47", "1", "1100", "10690", "0.048"], "red")
    assert ("gae               not offered", "yellow") in lines


def test_without_conformance_checks_there_is_no_conformance_table() -> None:
    assert conformance_table({"conformance": {}}) == []
    assert conformance_table({}) == []
