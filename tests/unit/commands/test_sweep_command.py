"""The sweep command: what it refuses, prints and returns, and two real runs, interrupted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib import cli
from precision_lib.commands import INCONCLUSIVE, INTERNAL, OK, USAGE
from precision_lib.jsonio import write_text
from precision_lib.matrix import get_configuration
from precision_lib.phases import sweep as phase
from precision_lib.phases.sweep import RECORD, run_sweep
from precision_lib.sweep import executors
from precision_lib.sweep.plan import SweepPlan
from precision_lib.training.directory import STEPS
from precision_lib.training.summary import SUMMARY
from tests.unit.sweep_runs import NAMES, ORIGIN, Executor, small_plan

PURE = get_configuration("bf16_pure")


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return small_plan(tmp_path / "sweep", PURE, seeds=(0, 1))


def main(plan: SweepPlan, *arguments: str) -> int:
    """``sweep`` in this process, on the plan's directory and with its settings."""
    given = ["sweep", "--max_steps", "4", "--output_dir", str(plan.directory), *arguments]
    try:
        return cli.main(given)
    except SystemExit as error:  # argparse's own
        return int(str(error.code))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "0.5", "--resume"], "gamma was 1.0 and is 0.5"),
        ([], "holds runs of a sweep already; continue them with --resume"),
        (["--resume", "--fresh"], "--fresh: not allowed with argument --resume"),
        (["--resume", "--seeds", "0", "0"], "must be at least one, and distinct"),
        (["--resume", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--resume", "--ray_address", "auto"], "need --executor ray"),
        (["--resume", "--configurations", "bf16"], "unknown precision configuration 'bf16'"),
        (["--resume", "--batch_size", "3"], "batch_size = 3 is no multiple of minibatches = 2"),
        (["--resume", "--matrix", "taken.toml"], "'bf16_pure' is already defined"),
    ],
)
def test_the_command_refuses_before_any_model_is_loaded(
    arguments: list[str],
    message: str,
    plan: SweepPlan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_sweep(plan, Executor(plan))
    monkeypatch.setattr(phase, "check_models", pytest.fail)
    monkeypatch.chdir(plan.directory)
    rows = "".join(f'{name} = "fp16"\n' for name in PURE.components)
    write_text(Path("taken.toml"), f"[bf16_pure]\n{rows}")
    assert main(plan, *arguments) == USAGE
    assert message in capsys.readouterr().err


@pytest.fixture
def executed(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """The command's executor, which trains nothing; the models are not loaded either."""
    execute = Executor(plan)
    monkeypatch.setattr(executors, "executor", lambda _plan, _resources, _stop: execute)
    monkeypatch.setattr(phase, "check_models", lambda _plan, *, here: ORIGIN if here else {})
    return execute


COMMAND = ("--seeds", "0", "1", "--configurations", "bf16_pure")


def test_the_command_runs_the_plan_and_prints_the_tables_without_colour(
    plan: SweepPlan, executed: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(plan, *COMMAND) == OK
    assert executed.asked == [cell.name for cell in plan.cells]
    out = capsys.readouterr().out
    assert "bf16_pure-seed-1: completed after 4 steps" in out
    assert "H1 KL collapse, in training" in out
    assert out.splitlines()[-1] == f"record: {plan.directory / RECORD}"
    assert "\033" not in out


def test_cells_that_failed_are_an_internal_error(
    plan: SweepPlan, executed: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    executed.crash = "bf16_pure-seed-0"
    assert main(plan, *COMMAND) == INTERNAL
    assert "1 cells failed; continue with --resume" in capsys.readouterr().err


def test_nothing_compared_is_inconclusive(
    plan: SweepPlan, executed: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    executed.until = 1
    assert main(plan, *COMMAND) == INCONCLUSIVE
    assert "no seed has an ended run of fp32_twin" in capsys.readouterr().err


def test_an_error_of_the_program_is_not_called_a_mistake_of_the_user(
    plan: SweepPlan, executed: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_runs: object) -> None:
        raise ValueError("list.index(x): x not in list")

    monkeypatch.setattr(phase, "weigh", broken)
    assert main(plan, *COMMAND) == INTERNAL


def test_by_default_the_matrix_and_the_users_own_configurations_are_trained(
    plan: SweepPlan, executed: Executor, tmp_path: Path
) -> None:
    rows = "".join(f'{name} = "fp16"\n' for name in PURE.components)
    write_text(tmp_path / "own.toml", f"[mine]\n{rows}")
    executed.until = 1
    main(plan, "--seeds", "3", "--matrix", str(tmp_path / "own.toml"))
    assert set(executed.asked) == {f"{name}-seed-3" for name in (*NAMES, "mine")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reward-model", "./no/such/directory"), "there is no such directory"),
        (("--device", "cuda"), "no CUDA device"),
        (("--device", "tpu9"), "unknown device 'tpu9'"),
        (("--max_new_tokens", "4096"), "the model has 2048 positions; use fewer"),
    ],
)
def test_what_no_cell_could_load_is_refused_before_the_first(
    arguments: tuple[str, ...],
    message: str,
    plan: SweepPlan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(plan, *arguments) == USAGE
    assert message in capsys.readouterr().err
    assert not (plan.directory / "runs").exists()


def test_two_real_runs_are_interrupted_and_resumed_and_only_what_is_missing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Embedded models, two cells one after the other; SIGTERM comes in the second."""
    directory = tmp_path / "sweep"
    settings = ["sweep", "--quick", "--seeds", "0", "--configurations", "fp32_baseline"]
    settings += ["--max_steps", "1", "--batch_size", "2", "--evaluation_sequences", "2"]
    settings += ["--output_dir", str(directory), "--jobs", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-m", "precision_lib.cli", *settings]
    with subprocess.Popen(command, text=True, **PIPES) as sweep:
        second = directory / "runs" / "fp32_twin-seed-0" / "log.txt"
        children: list[int] = []
        while sweep.poll() is None and not children:
            time.sleep(0.02)
            children = children_of(sweep.pid) if second.exists() else []
        sweep.send_signal(signal.SIGTERM)
        _, errors = sweep.communicate()
    assert sweep.returncode == INTERNAL, errors
    assert "stopped by SIGTERM; continue with --resume" in errors
    assert children, "it was looked for too late"
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    first = directory / "runs" / "fp32_baseline-seed-0"
    before = [(first / name).stat().st_mtime_ns for name in (SUMMARY, STEPS)]
    assert json.loads((directory / RECORD).read_text())["complete"] is False

    assert cli.main([*settings, "--resume"]) == OK
    printed = capsys.readouterr().out
    assert [(first / name).stat().st_mtime_ns for name in (SUMMARY, STEPS)] == before
    assert "fp32_twin-seed-0: completed after 1 steps" in printed
    assert "fp32_baseline-seed-0" not in printed, "it was run again"
    record = json.loads((directory / RECORD).read_text())
    assert record["complete"]
    start, twin_start = (run["evaluation"]["initial"] for run in record["runs"])
    assert start == twin_start
    assert record["runs"][0]["weights_sha256"] != record["runs"][1]["weights_sha256"]


PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def children_of(pid: int) -> list[int]:
    """Processes that ``pid`` started and that are there."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []
