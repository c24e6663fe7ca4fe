"""pytest -m sweep: who asks for it gets it, what it writes, and what its tests catch.

The sweep is there already, made by hand: nothing is trained, and no model is loaded.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lib.matrix import MATRIX
from precision_lib.phases.sweep import sweep_record
from precision_lib.plugin import sweep_outcome as outcome
from precision_lib.record.recorder import Recorder
from precision_lib.sweep import budget
from precision_lib.sweep.executors import Resources
from precision_lib.sweep.plan import ModelNames, SweepPlan, plan_sweep
from precision_lib.training.failures import KL_EXPLOSION
from tests.sweep import test_sweep
from tests.unit.small_blocks import read
from tests.unit.suite_runs import ROOT, run_checkout
from tests.unit.sweep_runs import NAMES, leave, noisy_gains

SWEEP = ROOT / "tests" / "sweep"
SEEDS = (0, 1)
WATCHER = """import sys
def pytest_unconfigure(config):
    print('IMPORTED', sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))
"""


def run_pytest(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest on the repository in a process of its own, its results below ``cwd``."""
    (cwd / "watch_imports.py").write_text(WATCHER)
    settings = ["-c", str(ROOT / "pytest.ini"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "-p", "watch_imports", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd)},
        capture_output=True,
        text=True,
    )


def a_sweep(directory: Path) -> SweepPlan:
    """A first look, whole, of runs in which bf16_pure loses half."""
    settings = budget.sweep_settings(quick=True)
    plan = plan_sweep(directory, MATRIX, SEEDS, settings, ModelNames())
    means, generator = {"bf16_pure": 0.5}, np.random.default_rng(0)
    gains = noisy_gains(means, generator, seeds=len(SEEDS), deviation=0.01)
    for cell in plan.cells:
        leave(plan, cell, gains[cell.configuration.name][cell.settings.seed])
    return plan


def test_by_default_the_sweep_stays_out(tmp_path: Path) -> None:
    others = [f"--ignore={ROOT / 'tests' / d}" for d in ("unit", "forensics", "benchmarks")]
    done = run_checkout("--collect-only", "-q", *others, str(ROOT / "tests"), cwd=tmp_path)
    assert "deselected" in done.stdout
    assert "test_sweep.py" not in done.stdout


def test_collecting_the_sweep_names_every_run_and_imports_no_model(tmp_path: Path) -> None:
    options = ("--collect-only", "-q", "--seed", "4", "-m", "sweep")
    done = run_pytest(tmp_path, *options, str(SWEEP))
    assert "IMPORTED []" in done.stdout
    found = [x for x in done.stdout.splitlines() if "asked_for[" in x]
    want = {f"{name}-seed-{seed}" for name in NAMES for seed in (4, 5, 6)}
    assert {x.partition("[")[2].rstrip("]") for x in found} == want
    assert "test_hypothesis_in_training[H4]" in done.stdout
    assert not list(tmp_path.rglob("*.json")), "collecting writes no record"


def test_a_sweep_that_is_there_is_weighed_recorded_and_shown(tmp_path: Path) -> None:
    a_sweep(tmp_path / budget.QUICK)
    options = ["--quick", "--jobs", "1", "--executor", "local"]
    done = run_checkout("-m", "sweep", *options, str(SWEEP), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.rglob("log.txt")), "something was run"
    record = read(tmp_path / "results" / "sweep_report.json")
    assert record["summary"]["passed"] == len(NAMES) * len(SEEDS) + 1 + 4
    training = record["precision"]["training"]
    assert training["complete"]
    assert training["evidence"]["seeds"] == list(SEEDS)
    assert record["precision"]["context"]["commit"] == {"sha": "c"}
    assert all("curves" not in run for run in training["runs"])
    assert "H1 KL collapse, in training: partly supported" in done.stdout
    assert "record: results/sweep_report.json" in done.stdout


def test_what_is_refused_keeps_the_record_of_an_earlier_sweep(tmp_path: Path) -> None:
    """Asked for by its folder alone."""
    kept = tmp_path / "results" / "sweep_report.json"
    kept.parent.mkdir()
    kept.write_text("an earlier one")
    options = ("--quick", "--executor", "ray", "--jobs", "2")
    done = run_checkout(*options, str(SWEEP), cwd=tmp_path)
    assert done.returncode == 4
    assert "--jobs is for local runs" in done.stdout
    assert kept.read_text() == "an earlier one"


def found(plan: SweepPlan, failed: dict[str, str] | None = None, **changes: Any) -> outcome.Outcome:
    """What the sweep's tests look at, with something else in its first run."""
    record = sweep_record(plan, failed or {})
    first, *others = record.runs
    return outcome.Outcome(replace(record, runs=(replace(first, **changes), *others)))


BASELINE_CELL = "fp32_baseline-seed-0"


def test_the_tests_of_the_sweep_pass_what_is_right(tmp_path: Path) -> None:
    plan = a_sweep(tmp_path)
    right = found(plan)
    for cell in plan.cells:
        test_sweep.test_run_ends_in_the_formats_that_were_asked_for(right, plan, cell.name)
    test_sweep.test_seeds_begin_alike_in_every_configuration(right)
    for hypothesis in ("H1", "H2", "H3", "H4"):
        test_sweep.test_hypothesis_in_training(right, hypothesis)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "unfinished"},
        {"status": KL_EXPLOSION, "reason": "far away"},  # FP32 itself has to complete
        {"failed": {BASELINE_CELL: "exit code 1"}},
        {"observed_formats": {"policy": "bf16"}},
        {"last_step": 2},
        {"curves": {"reward_mean": []}},
        {"curves": {"reward_mean": [1.0, 1.0, float("nan")]}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_that_cannot_be_believed_fails_its_test(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    plan = a_sweep(tmp_path)
    with pytest.raises(AssertionError):
        test_sweep.test_run_ends_in_the_formats_that_were_asked_for(
            found(plan, **changes), plan, BASELINE_CELL
        )


def test_a_seed_that_began_elsewhere_fails_its_test(tmp_path: Path) -> None:
    plan = a_sweep(tmp_path)
    other = found(plan)
    runs = list(other.record.runs)
    assert runs[3].evaluation is not None
    initial = replace(runs[3].evaluation.initial, reward_mean=7.0)
    runs[3] = replace(runs[3], evaluation=replace(runs[3].evaluation, initial=initial))
    other = outcome.Outcome(replace(other.record, runs=tuple(runs)))
    without = tuple(replace(run, evaluation=None) for run in runs)
    nothing = outcome.Outcome(replace(other.record, runs=without))
    for wrong in (other, nothing):
        with pytest.raises(AssertionError):
            test_sweep.test_seeds_begin_alike_in_every_configuration(wrong)


def test_a_twin_that_differs_and_a_sweep_of_one_seed_fail_their_tests(tmp_path: Path) -> None:
    plan = a_sweep(tmp_path)
    for cell in plan.cells:
        if cell.configuration.name == "fp32_twin":
            leave(plan, cell, 0.1)
    one = plan_sweep(tmp_path, MATRIX, [0], budget.sweep_settings(quick=True), ModelNames())
    for wrong in (plan, one):
        with pytest.raises(AssertionError, match="twin, one rounding away"):
            test_sweep.test_hypothesis_in_training(found(wrong), "H1")


def test_a_sweep_that_is_stopped_leaves_what_it_has_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second seed was not run when the signal came."""
    whole = a_sweep(tmp_path)
    wider = plan_sweep(tmp_path, MATRIX, [0, 1, 2], whole.cells[0].settings, ModelNames())
    recorder = Recorder(tmp_path / "report.json", MATRIX)
    monkeypatch.setattr(outcome, "check_models", lambda _plan, *, here: None)

    def stopped(_plan: object, _resources: object, _stop: object) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return lambda _cells: iter(())

    monkeypatch.setattr(outcome, "executor", stopped)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM: run it again to go on"):
        outcome.run(wider, Resources(), recorder, fresh=False)
    assert recorder.training is not None
    assert recorder.training.evidence is not None
    assert recorder.training.complete is False
    assert recorder.training.evidence.seeds == (0, 1)
