"""``precision-forensics ppo`` as a user meets it: exit codes, one-line messages, signals."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.cli import main
from precision_lib.commands import load_models
from precision_lib.models.value_head import ValueHead
from precision_lib.training.signals import stop_requests
from precision_lib.training.trainer import ppo_step
from tests.unit.small_pipelines import files_of, random_checkpoint, random_reward
from tests.unit.small_runs import (
    at_call,
    check_ended,
    one_line,
    pipeline,
    ppo_command,
    small_arguments,
    step_lines,
    stored_summary,
    train,
    without_time,
)

ROOT = Path(__file__).parents[3]
#: Where ``ppo`` looks its models up, and takes its steps.
MODELS, STEP = "precision_lib.commands.training.load_models", "precision_lib.training.run.ppo_step"


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, lambda _options: pipeline())


def test_completed_run_is_exit_code_0_and_the_run_of_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo_command(tmp_path / "command") == 0
    said = capsys.readouterr()
    assert said.err == "", "no progress bar outside a terminal"
    defaults, first, *_, last = said.out.splitlines()
    assert defaults.startswith("defaults for a policy of 0.0"), "in million parameters"
    assert first == "fp32_baseline, seed 0: completed after 4 of 4 steps"
    assert last == f"record: {tmp_path / 'command'}"
    check_ended(tmp_path / "command", "completed", "^$", 4)
    train(tmp_path / "library")
    lines = [without_time(step_lines(tmp_path / d)) for d in ("command", "library")]
    assert lines[0] == lines[1]
    before = files_of(tmp_path / "command")
    assert ppo_command(tmp_path / "command", "--resume") == 0
    assert capsys.readouterr().out == said.out
    assert files_of(tmp_path / "command") == before


def test_usual_directory_is_named_after_configuration_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = tmp_path / "mine.toml"
    formats = ("policy", "reference", "reward", "value", "kl")
    matrix.write_text("[mine]\n" + "".join(f'{c} = "fp32"\n' for c in formats))
    arguments = ["--precision_config", "mine", "--matrix", str(matrix), "--seed", "3"]
    assert main(["ppo", *arguments, *small_arguments(), "--max_steps=1"]) == 0
    stored = stored_summary(tmp_path / "results" / "ppo" / "mine-seed-3")
    assert (stored["configuration"], stored["seed"]) == ("mine", 3)
    assert stored["observed_formats"] == dict.fromkeys(formats, "fp32")


def test_numerical_failure_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ValueHead(torch.zeros(32), torch.tensor(1e4))
    lost = dataclasses.replace(pipeline(), value_head=head)
    monkeypatch.setattr(MODELS, lambda _options: lost)
    for more in ([], ["--resume"]):
        assert ppo_command(tmp_path, "--lam", "1", *more) == 2
        said = one_line(capsys)
        assert said.startswith("training ended early, value_divergence: value error 1e+04 RMS")


def fail_at_step(monkeypatch: pytest.MonkeyPatch, step: int, fault: Callable[[Any], Any]) -> None:
    monkeypatch.setattr(STEP, at_call(step, ppo_step, fault))


def raising(error: Exception) -> Callable[[Any], Any]:
    def fault(_run: Any) -> Any:
        raise error

    return fault


def test_no_memory_left_is_exit_code_3_and_can_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at_step(patch, 2, raising(torch.OutOfMemoryError("CUDA out of memory. Tried to")))
        assert ppo_command(tmp_path) == 3
    said = one_line(capsys)
    assert said == "out_of_memory: CUDA out of memory. Tried to; continue with --resume"
    assert ppo_command(tmp_path, "--resume") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_after_the_step_and_is_exit_code_3(
    number: signal.Signals,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def signalled(run: Any) -> Any:
        os.kill(os.getpid(), number)
        return ppo_step(run)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        fail_at_step(patch, 2, signalled)
        assert ppo_command(tmp_path) == 3
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    reason = f"stopped by {number.name} before step 3"
    assert one_line(capsys) == f"interrupted: {reason}; continue with --resume"
    check_ended(tmp_path, "interrupted", f"^{reason}$", 3)
    assert ppo_command(tmp_path, "--resume") == 0


def test_second_ctrl_c_stops_at_once_and_keeps_the_last_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(run: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return ppo_step(run)

    with monkeypatch.context() as patch:
        fail_at_step(patch, 3, twice)
        assert ppo_command(tmp_path) == 3
    said = "interrupted; steps up to the last state are kept: continue with --resume"
    assert one_line(capsys) == said
    assert len(step_lines(tmp_path)) == 3
    assert not (tmp_path / "summary.json").exists()
    assert ppo_command(tmp_path, "--resume") == 0


def test_elsewhere_than_in_the_main_thread_no_signal_is_caught() -> None:
    """Python allows no handlers there."""

    def ask() -> None:
        with stop_requests() as stop:
            answers.append(stop())

    answers: list[str | None] = []
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [None]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_broken_invariant_is_exit_code_3_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precision_lib.training.update.clip_gradient", lambda g, _: float(g.norm()))
    assert ppo_command(tmp_path, "--max_grad_norm=0.001") == 3
    assert one_line(capsys).startswith("PPO invariant broken: the clipped gradient is")


def test_disk_without_room_for_the_summary_is_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("precision_lib.training.run.write_summary", full)
    assert ppo_command(tmp_path, "--max_steps=1") == 3
    assert "No space left on device; steps up to the last state are kept" in one_line(capsys)


def test_embedded_models_train_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, load_models)
    assert ppo_command(tmp_path, "--max_steps=1", "--batch_size=2", name="bf16_pure") == 0
    [line] = step_lines(tmp_path)
    assert line["kl_k1_mean"] == line["first_log_ratio"] == 0
    assert stored_summary(tmp_path)["identity"]["models"]["value_head"] is not None


def test_process_that_is_terminated_leaves_a_run_to_continue(tmp_path: Path) -> None:
    """A scheduler's SIGTERM, from outside, to a process with models from disk."""
    arguments = ["--precision_config=fp32_baseline", f"--output_dir={tmp_path / 'run'}"]
    for name, made in (("model", random_checkpoint()), ("reward-model", random_reward())):
        made.model.save_pretrained(tmp_path / name)
        made.tokenizer.save_pretrained(tmp_path / name)
        arguments.append(f"--{name}={tmp_path / name}")
    command = [sys.executable, "-m", "precision_lib.cli", "ppo", *arguments, *small_arguments()]
    with subprocess.Popen(
        [*command, "--max_steps=100000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = tmp_path / "run" / "steps.jsonl"
        while process.poll() is None and not (lines.exists() and lines.read_bytes()):
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 3
    stopped = "precision-forensics: interrupted: stopped by SIGTERM before step "
    assert any(line.startswith(stopped) for line in said.splitlines())  # warnings may come before
    check_ended(tmp_path / "run", "interrupted", "SIGTERM", len(step_lines(tmp_path / "run")))
