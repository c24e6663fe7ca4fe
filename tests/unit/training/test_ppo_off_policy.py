"""An engine that draws beside the trainer: how far it is off, and importance weights."""

import dataclasses
import math
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.formats import FORMATS
from precision_lib.matrix import get_configuration
from precision_lib.metrics.rollout import MEASURES
from precision_lib.ppo.losses import policy_loss
from precision_lib.training.rollout import Experience, draw, learn_from, sampler
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import StateError, asked_for, check_identity
from precision_lib.training.trainer import ppo_step
from precision_lib.training.update import update
from tests.unit.small_pipelines import files_of
from tests.unit.small_runs import (
    UNHARMED,
    experience_of,
    one_line,
    opened,
    pipeline,
    ppo_command,
    settings,
    step_lines,
    stepped,
    train,
    variant,
)

U = FORMATS["fp32"].unit_roundoff
EXACT = dict.fromkeys(MEASURES, 0.0) | {"rollout_sequence_ess": 1.0}
SYMPTOM = "rollout_logprob_abs_diff_mean"


def test_without_an_engine_every_difference_is_exactly_0_and_the_run_is_the_usual_one(
    tmp_path: Path,
) -> None:
    """The trainer's own path as rollout: the same tokens, so the same weights, bit for bit."""
    usual = train(tmp_path / "usual", "bf16_pure", max_steps=2)
    beside_itself = train(tmp_path / "trainer", "bf16_trainer_rollout", max_steps=2)
    assert beside_itself.weights_sha256 == usual.weights_sha256
    assert beside_itself.observed_formats["rollout"] == "trainer"
    of_both = (step_lines(tmp_path / name) for name in ("trainer", "usual"))
    for line, other in zip(*of_both, strict=True):
        assert {name: line[name] for name in EXACT} == EXACT
        assert other[SYMPTOM] > 0, "a decoder in the policy's format is not its forward"
        assert line["importance_weight_mean"] is None


@pytest.mark.parametrize(
    ("name", "fmt"),
    [("bf16_fp8_rollout", "fp8"), ("bf16_fp16_rollout", "fp16"), ("fp32_bf16_rollout", "bf16")],
)
def test_an_engine_draws_in_its_format_and_the_first_ratio_stays_1(
    name: str, fmt: str, tmp_path: Path
) -> None:
    """The invariants are checked in the first step: the run would not have got to its second."""
    formats = get_configuration(name)
    summary = train(tmp_path / "engine", name, max_steps=2)
    assert summary.status == "completed"
    assert summary.formats == formats.components
    assert summary.observed_formats == formats.components
    assert summary.observed_formats["rollout"] == fmt
    for line in step_lines(tmp_path / "engine"):
        assert line["first_log_ratio"] == 0
        assert line[SYMPTOM] > 0
        if formats.trainer_components == get_configuration("fp32_baseline").components:
            assert {n: line[n] for n in UNHARMED if line[n] is not None}.items() <= UNHARMED.items()
    assert (summary.final[SYMPTOM] or 0) > 0


def test_figures_are_those_of_the_tokens_as_they_were_drawn() -> None:
    """Expected: in FP32 the two differ by FP32's rounding, and by nats where a token is shifted."""
    _, experience = stepped()
    sampled, scored, mask = experience.sampled, experience.scored, experience.given.mask
    for row, length in enumerate(mask.sum(1).tolist()):
        start = int(sampled.prompt_lengths[row]) - 1
        reported = sampled.rollout_logprobs[row, start : start + length]
        assert torch.equal(scored.rollout_logprobs[row, :length], reported)
    difference = (scored.logprobs - scored.rollout_logprobs)[mask].abs()
    assert 0 < difference.max() < 1e-4
    assert (scored.logprobs - scored.rollout_logprobs.roll(1, 1))[mask].abs().mean() > 0.1


def test_an_engine_has_the_weights_of_the_step() -> None:
    with opened("fp32_bf16_rollout") as run:

        def drawn() -> Tensor:
            return draw(run.models, sampler(run.models, run.weights), run.settings, 0).tokens

        first, stale = drawn(), sampler(run.models, run.weights)
        run.weights.master.mul_(1.5)
        assert not torch.equal(drawn(), first)
        assert torch.equal(draw(run.models, stale, run.settings, 0).tokens, first), "it would be"


def test_equal_log_probs_have_weights_of_exactly_1_and_the_run_is_the_one_without(
    tmp_path: Path,
) -> None:
    for name in ("bf16_trainer_rollout", "bf16_fp8_rollout"):
        digests = set()
        for level in (None, "token", "sequence"):
            directory = tmp_path / f"{name}-{level}"
            summary = train(directory, name, max_steps=2, importance_weights=level)
            digests.add(summary.weights_sha256)
            if level and name == "bf16_trainer_rollout":
                for line in step_lines(directory):
                    assert line["importance_weight_mean"] == 1
                    assert line["importance_weight_truncated_frac"] == 0
        off = name == "bf16_fp8_rollout"
        assert len(digests) == (3 if off else 1), "an engine that is off has other weights"


def test_an_update_sees_advantages_times_weights() -> None:
    masters = []
    weights = torch.rand(stepped()[1].advantages.shape, generator=torch.Generator().manual_seed(0))
    for given in ("importance", "advantages", "neither"):
        with opened("fp32_baseline", batch_size=12, minibatches=3) as run:
            ppo_step(run)
            experience = experience_of(run)
            if given == "importance":
                experience = dataclasses.replace(experience, importance=weights)
            if given == "advantages":
                product_ = experience.advantages * weights
                experience = dataclasses.replace(experience, advantages=product_)
            update(run.models, run.weights, experience, run.settings, run.step)
            masters.append(run.weights.master)
    assert torch.equal(masters[0], masters[1])
    assert not torch.equal(masters[0], masters[2])


#: The planted case: two tokens of four, drawn uniformly by the rollout; the trainer's probabilities
#: are these. Every response occurs once, so that a mean over them is the rollout's expectation.
TRAINER = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8], dtype=torch.float64)
RESPONSES = torch.tensor(list(product(range(4), repeat=2)))
#: A score of each token, and one that two tokens have together.
SCORES = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
ALONE = SCORES[RESPONSES].sum(1)
TOGETHER = SCORES[RESPONSES].prod(1)


def exact_gradient(scores: Tensor) -> Tensor:
    """[4] gradient of the mean score under the trainer's policy, by the trainer's logits."""
    chances = TRAINER[RESPONSES].prod(1)
    slope = torch.nn.functional.one_hot(RESPONSES, 4).double() - TRAINER
    return (chances * scores) @ slope.sum(1)


def estimated(scores: Tensor, experience: Experience) -> Tensor:
    """[4] what PPO's loss makes of it, with the weights of ``experience``."""
    logits = TRAINER.log().requires_grad_(True)
    logprobs = torch.log_softmax(logits, 0)[RESPONSES]
    advantages = scores.unsqueeze(1).expand(16, 2)
    weighted = dataclasses.replace(experience, advantages=advantages).weighted_advantages
    mask = torch.ones(16, 2, dtype=torch.bool)
    (-2 * policy_loss(logprobs, logprobs.detach(), weighted, mask, 0.2)).backward()
    assert logits.grad is not None
    return logits.grad


def planted(level: str | None, cap: float = 4.0, *, swapped: bool = False) -> Experience:
    """The experience that training makes of the planted log-probs; advantages come later."""
    given: dict[str, Any] = {} if level is None else {"importance_cap": cap}
    chosen = PPOSettings(importance_weights=level, **given)
    trainer, rollout = (
        TRAINER.log()[RESPONSES],
        torch.full((16, 2), -math.log(4.0), dtype=torch.float64),
    )
    if swapped:
        trainer, rollout = rollout, trainer
    _, template = stepped()
    mask = torch.ones(16, 2, dtype=torch.bool)
    scored = dataclasses.replace(
        template.scored,
        logprobs=trainer,
        ref_logprobs=trainer,
        rollout_logprobs=rollout,
        values=torch.zeros(16, 2),
        scores=torch.zeros(16),
    )
    rows = dataclasses.replace(template.given, mask=mask)
    return learn_from(template.sampled, rows, scored, chosen, "fp64", 0.0)


def bias(scores: Tensor, experience: Experience) -> float:
    return float((estimated(scores, experience) - exact_gradient(scores)).norm())


@cache
def size(together: bool) -> float:
    return float(exact_gradient(TOGETHER if together else ALONE).norm())


def test_weights_take_the_bias_of_another_rollout_away() -> None:
    """Expected: exact per sequence; exact per token where a score is a sum of the tokens' own.

    The largest weight of a token is 2 and of a sequence 4, so caps of 2 and 4 cut nothing. A cap
    that cuts leaves some bias; weights upside down make it larger.
    """
    free = 64 * FORMATS["fp64"].unit_roundoff
    assert bias(ALONE, planted("token", 2.0)) <= free * size(False)
    assert bias(ALONE, planted("sequence")) <= free * size(False)
    assert bias(TOGETHER, planted("sequence")) <= free * size(True)
    for scores in (ALONE, TOGETHER):
        without = bias(scores, planted(None))
        assert without > 0.1 * float(exact_gradient(scores).norm())
        assert bias(scores, planted("sequence", swapped=True)) > without
    uncut, cut, without = (
        bias(ALONE, planted(*given)) for given in (("token", 2.0), ("token", 1.0), (None,))
    )
    assert uncut < 0.5 * cut < 0.5 * without
    assert bias(TOGETHER, planted("token", 2.0)) > 0.01 * size(True), "tokens see no pairs"


def test_settings_of_importance_weights_are_checked() -> None:
    assert PPOSettings(importance_weights="token").importance_cap == 2
    assert PPOSettings(importance_weights="sequence", importance_cap=3.0).importance_cap == 3
    wrong: dict[str, Any]
    for wrong, message in (
        ({"importance_cap": 2.0}, "importance_cap = 2.0 caps nothing without importance_weights"),
        ({"importance_weights": "geometric"}, "must be one of token, sequence"),
        ({"importance_weights": "token", "importance_cap": 0.0}, "must be positive and finite"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOSettings(**wrong)


def test_a_run_begun_before_the_weights_were_an_option_goes_on_without_them() -> None:
    formats = get_configuration("bf16_pure")
    stored = asked_for(formats, settings())
    for name in ("importance_weights", "importance_cap"):
        del stored["settings"][name]
    check_identity(Path("state"), stored, asked_for(formats, settings()))
    with pytest.raises(StateError, match="importance_weights was None and is 'token'"):
        check_identity(
            Path("state"), stored, asked_for(formats, settings(importance_weights="token"))
        )


def test_an_engine_that_the_policy_cannot_have_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_layers(model: Any) -> None:
        model.base_model.layers = torch.nn.ModuleList()

    models = "precision_lib.commands.training.load_models"
    monkeypatch.setattr(models, lambda _options: variant("policy", without_layers))
    assert ppo_command(tmp_path / "run", name="bf16_fp8_rollout") == 4
    assert "has no linear layer to compute in fp8" in one_line(capsys)
    assert files_of(tmp_path) == {}


def test_the_command_takes_weights_and_says_how_far_the_rollout_was_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precision_lib.commands.training.load_models", lambda _options: pipeline())
    given = ["--importance_weights=sequence", "--importance_cap=1.5", "--max_steps=2"]
    assert ppo_command(tmp_path, *given, name="bf16_fp8_rollout") == 0
    said = capsys.readouterr().out
    assert "rollout mismatch: 0." in said
    for line in step_lines(tmp_path):
        assert 0 < line["importance_weight_mean"] <= 1.5
        assert line[SYMPTOM] > 0
