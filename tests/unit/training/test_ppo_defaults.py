"""Defaults by the size of the policy: at the boundaries, and for the embedded policy as ever."""

import dataclasses
from pathlib import Path

import pytest

from precision_lib import cli
from precision_lib.commands.sweep import _plan
from precision_lib.models.loading import load_checkpoint
from precision_lib.training.defaults import parameters_of, sized
from precision_lib.training.settings import PPOSettings
from tests.unit.small_pipelines import random_checkpoint

NOTHING: set[str] = set()


@pytest.mark.parametrize(
    ("parameters", "learning_rate", "kl_coefficient"),
    [
        (1, 1e-4, 0.1),
        (10_000_000, 1e-4, 0.1),
        (10_000_001, 3e-6, 0.05),
        (134_515_008, 3e-6, 0.05),
        (1_000_000_000, 3e-6, 0.05),
        (1_000_000_001, 1e-6, 0.01),
        (70_000_000_000, 1e-6, 0.01),
    ],
)
def test_defaults_change_at_their_boundaries(
    parameters: int, learning_rate: float, kl_coefficient: float
) -> None:
    settings, text = sized(PPOSettings(max_steps=7), parameters, NOTHING)
    want = PPOSettings(max_steps=7, learning_rate=learning_rate, kl_coefficient=kl_coefficient)
    assert settings == want
    assert f"learning_rate {learning_rate:g}, kl_coefficient {kl_coefficient:g} (" in text


def test_the_embedded_policy_keeps_its_values() -> None:
    parameters = parameters_of(load_checkpoint().model)
    settings, text = sized(PPOSettings(), parameters, NOTHING)
    assert settings == PPOSettings()
    assert text.startswith("defaults for a policy of 3.69 million parameters: learning_rate 0.0001")


def test_what_was_asked_for_stays() -> None:
    given = PPOSettings(learning_rate=1e-4, kl_coefficient=0.3)
    assert sized(given, 10**9, {"learning_rate", "kl_coefficient"}) == (given, "")
    settings, text = sized(given, 10**9, {"learning_rate"})
    assert settings == dataclasses.replace(given, kl_coefficient=0.05)
    assert "learning_rate" not in text.partition("(")[0]


def test_a_sweep_of_a_model_of_ones_own_has_the_defaults_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = random_checkpoint()
    monkeypatch.setattr("precision_lib.models.loading.load_checkpoint", lambda _name: loaded)
    monkeypatch.setattr("precision_lib.training.defaults.parameters_of", lambda _model: 10**9)

    def settings(*arguments: str) -> PPOSettings:
        given = ["sweep", "--output_dir", str(tmp_path), *arguments]
        found: PPOSettings = _plan(cli._parser().parse_args(given)).cells[0].settings
        return found

    assert settings("--model=own").learning_rate == 3e-6
    assert settings("--model=own", "--learning_rate=1e-4").learning_rate == 1e-4
    assert settings("--model=own", "--learning_rate=1e-4").kl_coefficient == 0.05
    assert settings().learning_rate == 1e-4, "the embedded policy"


def test_a_tied_matrix_counts_once() -> None:
    tied, untied = (random_checkpoint(tie_word_embeddings=tie).model for tie in (True, False))
    matrix = tied.get_input_embeddings().weight.numel()
    assert parameters_of(untied) - parameters_of(tied) == matrix
