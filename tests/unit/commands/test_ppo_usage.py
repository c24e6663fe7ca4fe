"""``precision-forensics ppo`` asked wrongly: exit code 4, one line, nothing begun; and its help."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.cli import main
from precision_lib.commands import load_models
from precision_lib.commands.training import SETTINGS
from precision_lib.phases.ppo import kl_warning
from precision_lib.training.settings import PPOSettings
from precision_lib.trajectories.prompts import MAX_PROMPT_TOKENS
from tests.unit.small_pipelines import files_of, random_checkpoint, random_reward
from tests.unit.small_runs import (
    a_line,
    one_line,
    pipeline,
    ppo_command,
    step_lines,
    stored_summary,
    train,
)

MODELS = "precision_lib.commands.training.load_models"


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, lambda _options: pipeline())


WRONG = [
    (["--precision_config=typo"], "unknown precision configuration 'typo'; known: bf16_pure,"),
    (["--matrix=nowhere.toml"], "nowhere.toml does not exist"),
    (["--output_dir=/dev/null/x"], "cannot write to /dev/null/x"),
    (["--max_steps=1.5"], "--max_steps 1.5 must be a whole number"),
    (["--kl_horizon=1e-3"], "--kl_horizon 0.001 must be a whole number"),
    (["--max_steps=0"], "max_steps = 0 must be at least 1"),
    (["--epochs=-1"], "epochs = -1 must be at least 1"),
    (["--evaluation_sequences=1"], "evaluation_sequences = 1: give 2 or more"),
    (["--minibatches=3"], "batch_size = 4 is no multiple of minibatches = 3"),
    (["--samples_per_prompt=3"], "batch_size = 4 is no multiple of samples_per_prompt = 3"),
    (["--learning_rate=-1"], "learning_rate = -1.0 must be 0 or more and finite"),
    (["--learning_rate=nan"], "learning_rate = nan must be 0 or more and finite"),
    (["--max_grad_norm=inf"], "max_grad_norm = inf must be positive and finite"),
    (["--clip_range=1"], "clip_range = 1.0 must lie between 0 and 1"),
    (["--gamma=1.1"], "gamma = 1.1 must lie in [0, 1]"),
    (["--kl_coefficient=-1"], "kl_coefficient = -1.0 must be 0 or more and finite"),
    (["--target_kl=0"], "target_kl = 0.0 must be positive and finite"),
    (["--target_kl=1", "--kl_coefficient=0"], "an adaptive kl_coefficient of 0 stays 0"),
    (["--target_kl=1", "--kl_horizon=3"], "kl_horizon = 3 is less than one batch of 4"),
    ([f"--seed={2**70}"], "does not fit into 64 bits"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[w[0][-1] for w in WRONG])
def test_wrong_options_are_exit_code_4_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODELS, None)
    assert ppo_command(tmp_path / "run", *arguments) == 4
    assert message in one_line(capsys)
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate=fast"], "argument --learning_rate: 'fast' is not a number"),
        (["--typo=1"], "unrecognized arguments: --typo=1"),
    ],
)
def test_options_that_cannot_be_read_are_exit_code_4(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ppo_command(tmp_path, *arguments)
    assert ended.value.code == 4
    assert message in capsys.readouterr().err


def test_whole_numbers_may_be_written_as_they_like(tmp_path: Path) -> None:
    assert ppo_command(tmp_path, "--max_steps=1e0", "--kl_horizon=1e4", "--gamma=1", "--lam=1") == 0
    given = stored_summary(tmp_path)["identity"]["settings"]
    assert (given["kl_horizon"], given["gamma"]) == (10_000, 1.0)
    assert stored_summary(tmp_path)["max_steps"] == 1


def test_directory_that_holds_a_run_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, max_steps=1)
    before = files_of(tmp_path)
    assert ppo_command(tmp_path) == 4
    assert "holds a PPO run already; continue it with --resume" in one_line(capsys)
    assert ppo_command(tmp_path, "--resume", "--learning_rate=1") == 4
    assert "settings.learning_rate was 0.001 and is 1.0; give what it was" in one_line(capsys)
    assert files_of(tmp_path) == before
    (tmp_path / "summary.json").write_text("{")
    assert ppo_command(tmp_path, "--resume") == 4
    assert "summary.json cannot be read" in one_line(capsys)


@pytest.mark.parametrize("role", ["policy", "reference", "reward"])
def test_lengths_beyond_a_models_positions_are_exit_code_4(
    role: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of the reward model, which reads the same tokens here."""
    made: Any = random_reward() if role == "reward" else random_checkpoint(num_hidden_layers=1)
    made.model.config.max_position_embeddings = MAX_PROMPT_TOKENS + 6
    short = dataclasses.replace(pipeline(), **{role: made})
    monkeypatch.setattr(MODELS, lambda _options: short)
    assert ppo_command(tmp_path, "--max_new_tokens=7") == 4
    assert one_line(capsys).startswith(f"{role} model: max_new_tokens = 7: with a prompt of up to")
    assert not step_lines(tmp_path)
    assert ppo_command(tmp_path, "--max_new_tokens=6", "--max_steps=1") == 0


def test_cuda_without_a_device_is_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODELS, load_models)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ppo_command(tmp_path, "--device=cuda") == 4
    assert one_line(capsys).startswith("--device cuda: no CUDA device")


def test_help_lists_every_setting_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ppo", "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(PPOSettings):
        assert f"--{field.name} " in said
        assert SETTINGS.get(field.name, "") in said
    others = ("precision_config", "resume", "output_dir", "matrix", "model", "reward-model")
    for option in (*others, "reference-model", "device", "seed"):
        assert f"--{option} " in said


def test_a_jump_of_the_kl_is_warned_of() -> None:
    settings = PPOSettings(max_new_tokens=10)
    line = a_line(2, kl_sequence_mean=5.0)
    limit = 10 * math.log1p(settings.clip_range)
    [warning] = kl_warning(5.0 - 1.01 * limit, line, settings)
    assert "step 2: the KL rose by 0.18 nats per token" in warning
    assert warning.endswith("give --learning_rate 1e-05")
    assert kl_warning(5.0 - 0.99 * limit, line, settings) == []
    assert kl_warning(None, line, settings) == [], "a run that goes on has no step before"


def test_defaults_go_by_the_size_of_the_policy_and_an_option_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precision_lib.training.defaults.parameters_of", lambda _policy: 10**7 + 1)
    assert ppo_command(tmp_path / "middle", "--max_steps=1") == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("defaults for a policy of 10 million parameters: kl_coefficient 0.05 (")
    stored = stored_summary(tmp_path / "middle")["identity"]["settings"]
    assert (stored["learning_rate"], stored["kl_coefficient"]) == (1e-3, 0.05)
    assert ppo_command(tmp_path / "own", "--max_steps=1", "--kl_coefficient=0.3") == 0
    assert not capsys.readouterr().out.startswith("defaults")
    assert stored_summary(tmp_path / "own")["identity"]["settings"]["kl_coefficient"] == 0.3
