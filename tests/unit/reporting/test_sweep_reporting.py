"""What a person sees of a sweep and of a run: verdicts in words, what failed, what is not known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.matrix import MATRIX
from precision_lib.phases.sweep import sweep_record
from precision_lib.record.codec import decode, encode
from precision_lib.record.record import nothing_measured
from precision_lib.record.sweep import Sweep
from precision_lib.reporting.styles import STYLES, Line
from precision_lib.reporting.table import summary
from precision_lib.reporting.training import summary_lines, sweep_lines
from precision_lib.sweep.cells import DAMAGE, STEPS_TO_LEVEL
from precision_lib.sweep.plan import SweepPlan
from precision_lib.training.failures import KL_EXPLOSION
from tests.unit.sweep_runs import (
    NAMES,
    a_cell,
    evaluation,
    leave,
    noisy_gains,
    small_plan,
    summary_of,
)

WIDTH = 120


def a_sweep(
    directory: Path, means: dict[str, float], *, deviation: float = 0.01, seeds: int = 3
) -> tuple[SweepPlan, dict[str, Any]]:
    """A plan with all its runs, and its record as ``sweep.json`` has it."""
    plan = small_plan(directory, *MATRIX, seeds=range(seeds), max_steps=20)
    gains = noisy_gains(means, np.random.default_rng(0), seeds=seeds, deviation=deviation)
    for cell in plan.cells:
        leave(plan, cell, gains[cell.configuration.name][cell.settings.seed])
    return plan, read_back(sweep_record(plan, {}))


def read_back(sweep: Sweep) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(encode(sweep), allow_nan=False))
    return found


def texts(record: dict[str, Any]) -> list[str]:
    return [text for text, _ in lines_of(record)]


def lines_of(record: dict[str, Any]) -> list[Line]:
    """Lines about what ``sweep.json`` holds."""
    return sweep_lines(decode(Sweep, record))


def row(record: dict[str, Any], name: str) -> str:
    [found] = [text for text in texts(record) if text.startswith(name + "  ")]
    return found


def test_a_whole_sweep_shows_every_configuration_with_its_verdict_and_colour(
    tmp_path: Path,
) -> None:
    _, record = a_sweep(tmp_path, {"bf16_pure": 0.5})
    lines = lines_of(record)
    assert lines[0] == ("PPO sweep: 24 of 24 runs ended, 20 steps", "")
    assert lines[1][0].startswith("against fp32_baseline, paired over seeds 0, 1, 2; it gained 1.0")
    for name in NAMES[1:]:
        [(text, style)] = [line for line in lines if line[0].startswith(name + "  ")]
        verdict = "impaired" if name == "bf16_pure" else "healthy"
        assert text.endswith(verdict)
        assert style == STYLES[verdict]
    [cell] = [c for c in record["evidence"]["cells"] if c["configuration"] == "bf16_pure"]
    lost = cell["metrics"][DAMAGE]
    assert f"  {lost['value']:.0%} [{lost['low']:.0%}, {lost['high']:.0%}]  " in row(
        record, "bf16_pure"
    )
    [verdict] = [text for text in texts(record) if text.startswith("H1")]
    assert verdict == "H1 KL collapse, in training: partly supported (twin null, as it must be)"
    assert any(text.startswith("impaired above 10%: a tenth of what") for text in texts(record))


def test_rows_are_aligned_and_fit_a_terminal(tmp_path: Path) -> None:
    """Also with two-digit seeds, three-digit shares and a failed run among them."""
    plan, _ = a_sweep(tmp_path, {"bf16_pure": -1.0, "bf16_fp32_kl": 0.75}, deviation=0.4)
    leave(plan, plan.cells[-1], status=KL_EXPLOSION)
    record = read_back(sweep_record(plan, {}))
    lines = texts(record)
    heading = next(i for i, text in enumerate(lines) if text.startswith("configuration"))
    rows = lines[heading : heading + len(NAMES)]
    verdicts = ("verdict", "healthy", "impaired", "inconclusive")
    starts = {min(r.index("  " + v) for v in verdicts if "  " + v in r) for r in rows}
    assert len(starts) == 1, rows
    assert max(map(len, rows)) <= WIDTH, rows
    assert any("(needs " in r for r in rows)


def test_what_is_undecided_says_how_many_seeds_it_needs(tmp_path: Path) -> None:
    _, record = a_sweep(tmp_path, {"bf16_pure": 0.7}, deviation=0.2)
    cells = {c["configuration"]: c for c in record["evidence"]["cells"]}
    undecided = [c for c in cells.values() if c["verdict"] == "inconclusive"]
    assert {type(c["seeds_needed"]) for c in undecided} == {int, type(None)}
    for cell in undecided:
        known = f" (needs {cell['seeds_needed']})" if cell["seeds_needed"] else ""
        assert row(record, cell["configuration"]).endswith(f"inconclusive{known}")
    [verdict] = [v for v in record["evidence"]["hypotheses"] if v["hypothesis"] == "H1"]
    assert any(f"; {verdict['seeds_needed']} seeds would decide)" in text for text in texts(record))


def test_intervals_without_an_end_are_question_marks(tmp_path: Path) -> None:
    _, record = a_sweep(tmp_path, {}, seeds=1)
    assert "[?, ?]" in row(record, "bf16_pure")
    assert not any("inf%" in text or "nan" in text for text in texts(record))
    assert any("(twin not compared, with one seed)" in text for text in texts(record))


def test_a_record_without_evidence_says_why(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, seeds=(0, 1))
    leave(plan, plan.cells[0])
    lines = lines_of(read_back(sweep_record(plan, {})))
    assert lines[0][0] == "PPO sweep: 1 of 4 runs ended, 4 steps"
    [(why, style)] = lines[1:]
    assert why.startswith("inconclusive: no seed has an ended run of fp32_twin")
    assert style == STYLES["inconclusive"]


def test_cells_that_failed_are_named_with_their_reason(tmp_path: Path) -> None:
    plan, _ = a_sweep(tmp_path, {})
    record = read_back(sweep_record(plan, {"bf16_pure-seed-1": "exit code 1: oh no"}))
    assert ("FAILED bf16_pure-seed-1: exit code 1: oh no", "red") in lines_of(record)


def test_a_configuration_with_a_failed_run_has_a_verdict_and_no_figures(tmp_path: Path) -> None:
    plan, _ = a_sweep(tmp_path, {})
    [cell] = [c for c in plan.cells if c.name == "bf16_pure-seed-1"]
    leave(plan, cell, status=KL_EXPLOSION, last_step=3)
    record = read_back(sweep_record(plan, {}))
    assert row(record, "bf16_pure").split() == ["bf16_pure", "-", "-", "-", "-", "impaired"]
    assert any("bf16_pure failed with seed 1 (kl_explosion)" in text for text in texts(record))


def test_a_level_that_was_not_reached_is_said_where_there_was_one(tmp_path: Path) -> None:
    _, record = a_sweep(tmp_path, {})
    assert "not reached" not in row(record, "bf16_pure")
    for cell in record["evidence"]["cells"]:
        if cell["configuration"] == "bf16_pure":
            del cell["metrics"][STEPS_TO_LEVEL]
    assert "not reached" in row(record, "bf16_pure")
    del record["evidence"]["deviations"][STEPS_TO_LEVEL]  # the baseline never rose
    assert "not reached" not in row(record, "bf16_pure")


def test_a_twin_that_differs_is_shouted(tmp_path: Path) -> None:
    _, record = a_sweep(tmp_path, {"fp32_twin": 0.2})
    assert any("(twin NOT NULL)" in text for text in texts(record))


def test_a_baseline_that_gained_nothing_has_nothing_lost_against_it(tmp_path: Path) -> None:
    _, record = a_sweep(tmp_path, dict.fromkeys(NAMES, -0.5))
    assert row(record, "bf16_pure").split()[1] == "-"
    assert any("has nothing to lose: the baseline has gained nothing" in t for t in texts(record))


def test_the_summary_of_pytest_ends_with_the_sweep(tmp_path: Path) -> None:
    _, record = a_sweep(tmp_path, {})
    block = nothing_measured()
    swept = replace(block, training=decode(Sweep, record))
    assert summary(swept) == lines_of(record)
    assert summary(block) == []


def test_a_run_shows_how_it_ended_and_both_halves_of_what_it_reached() -> None:
    lines = summary_lines(summary_of(a_cell(), gain=1.8, kl=2.0))
    assert lines[0] == "fp32_baseline, seed 0: completed after 20 of 20 steps"
    assert "reward 1.0 -> 3.0 (+1.00 standard deviations), KL 2.0 nats per sequence" in lines[1]


def test_a_run_that_failed_shows_why() -> None:
    run = summary_of(a_cell(), status=KL_EXPLOSION, reason="far away", last_step=3, evaluation={})
    assert summary_lines(run) == [
        "fp32_baseline, seed 0: kl_explosion after 3 of 20 steps (far away)"
    ]


def test_figures_that_are_not_finite_are_shown_as_such() -> None:
    """As a summary spells them; and a reward without any spread has no deviations."""
    found = evaluation(2.0, 1.0)
    found["final"] |= {"reward_mean": "nan", "kl_per_sequence": "inf"}
    found["initial"]["reward_std"] = 0.0
    [_, line] = summary_lines(summary_of(a_cell(), evaluation=found))
    assert "reward 1.0 -> nan (+nan standard deviations), KL inf nats" in line
