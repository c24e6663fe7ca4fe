"""What must hold in every first step, on real steps; and each check against what it must catch."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.formats import FORMATS
from precision_lib.record.codec import encode
from precision_lib.training import invariants
from precision_lib.training.forward import forward
from precision_lib.training.invariants import InvariantError
from precision_lib.training.rollout import Experience
from precision_lib.training.trainer import ppo_step
from precision_lib.training.update import Updates, clip_gradient, update
from tests.unit.small_pipelines import random_pipeline
from tests.unit.small_runs import MANY, NAMES, experience_of, opened, pipeline, stepped, variant

U = FORMATS["fp32"].unit_roundoff


@pytest.mark.parametrize("name", [*NAMES, "bf16_fp32_kl", "fp32_bf16_reward", "all_fp64"])
def test_every_first_step_passes_and_is_exact_where_the_quantity_is(name: str) -> None:
    """Ratio bitwise 1, approx-KL exactly 0, KL(policy, reference) exactly 0; formats as asked."""
    with opened(name, epochs=2, **MANY) as run:
        experience = experience_of(run)
        assert (experience.penalty[experience.given.mask] == 0).all()
        assert not experience.given.mask.all()
        found = update(run.models, run.weights, experience, run.settings, 0)
        first, *others = found.ratios
        assert first.smallest_log_ratio == first.largest_log_ratio == first.approx_kl == 0
        assert first.clip_frac == 0
        assert any(r.approx_kl > 0 for r in others), "a ratio that is always 1 learns nothing"
    with opened(name, epochs=2, **MANY) as run:
        line = encode(ppo_step(run))
        assert run.checked
        assert run.observed == run.models.configuration.components
    assert line["kl_k1_mean"] == line["first_log_ratio"] == line["golden_kl_penalty_mean"] == 0


def test_a_reference_in_another_format_has_a_kl_before_any_training() -> None:
    with opened("bf16_fp32_ref") as run:
        experience = experience_of(run)
        line = encode(ppo_step(run))
    assert (experience.penalty[experience.given.mask] != 0).any()
    assert line["kl_penalty_mean"] > 0
    assert line["golden_kl_penalty_mean"] == 0


def test_a_reference_of_other_weights_has_one_too() -> None:
    with opened("fp32_baseline", random_pipeline(moved=2.0**-7)) as run:
        assert ppo_step(run).damage.golden_kl_penalty_mean > 0


def test_clean_experience_passes_every_check() -> None:
    run, experience = stepped()
    invariants.check_models(run.models, run.weights)
    invariants.check_optimizer(run.weights)
    observed = invariants.observed_formats(run.models, run.weights, experience)
    invariants.check_formats(run.models, observed)
    invariants.check_rewards(experience, run.kl_coefficient)
    invariants.check_advantages(experience)


@pytest.mark.parametrize("role", ["policy", "reference", "reward"])
def test_dropout_is_caught(role: str) -> None:
    """A single module in training mode is enough."""
    run, _ = stepped()
    weights, models = copy.copy(run.weights), run.models
    original = weights.working if role == "policy" else getattr(models, role)
    broken = copy.deepcopy(original)
    list(broken.modules())[-1].train()
    if role == "policy":
        weights.working = broken
    else:
        models = dataclasses.replace(models, **{role: broken})
    with pytest.raises(InvariantError, match=f"the {role} model is in training mode"):
        invariants.check_models(models, weights)


def test_one_log_ratio_that_is_not_zero_at_the_start_is_caught() -> None:
    with opened("fp32_baseline") as run:
        experience = experience_of(run)
        invariants.check_start(run.models, experience)
        penalty = experience.penalty.clone()
        penalty[0, 0] = FORMATS["fp32"].smallest_subnormal
        with pytest.raises(InvariantError, match=r"^PPO invariant broken: 1 of \d+ log-ratios are"):
            invariants.check_start(run.models, dataclasses.replace(experience, penalty=penalty))


def changed(x: Tensor, row: int, column: int, change: Callable[[Tensor], Any]) -> Tensor:
    new = x.clone()
    new[row, column] = change(x[row, column])
    return new


def longer(experience: Experience) -> int:
    """A row of two tokens or more with padding behind."""
    lengths, width = experience.given.mask.sum(1), experience.given.mask.shape[1]
    return int(((lengths > 1) & (lengths < width)).nonzero()[0])


@pytest.mark.parametrize(
    "fault",
    [
        "score at the last column",
        "score on every token",
        "score one token early",
        "penalty of another sign",
        "penalty scaled by 1 + 16 u",
        "penalty left out of one token",
        "NaN",
    ],
)
def test_wrong_rewards_are_caught(fault: str) -> None:
    run, experience = stepped()
    r, row = experience.rewards, longer(experience)
    last = int(experience.given.mask[row].sum()) - 1
    penalties = -run.kl_coefficient * torch.where(experience.given.mask, experience.penalty, 0)
    alone = experience.scored.scores.unsqueeze(1) * torch.nn.functional.one_hot(
        experience.given.mask.sum(1) - 1, r.shape[1]
    )
    wrong = {
        "score at the last column": penalties + alone.roll(-last - 1, 1) * (row >= 0),
        "score on every token": penalties + experience.scored.scores.unsqueeze(1),
        "score one token early": penalties + alone.roll(-1, 1),
        "penalty of another sign": alone - penalties,
        "penalty scaled by 1 + 16 u": changed(r, row, 0, lambda x: x * (1 + 16 * U)),
        "penalty left out of one token": changed(r, row, 0, lambda x: x * 0),
        "NaN": changed(r, row, 0, lambda x: x * torch.nan),
    }[fault]
    broken = dataclasses.replace(experience, rewards=wrong)
    invariants.check_rewards(dataclasses.replace(experience, rewards=penalties + alone), 0.1)
    with pytest.raises(InvariantError, match=r"\d+ rewards are not -kl_coefficient \* KL per"):
        invariants.check_rewards(broken, run.kl_coefficient)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, mask: a + mask * 4 * U, "have mean"),
        (lambda a, mask: a * (1 + 4 * U), "deviation 1.0000002"),
        (lambda a, mask: a * 0.5, r"deviation 0\.(5|49999999)"),
        (lambda a, mask: a + 0.5, "not 0 on padding"),
        (lambda a, mask: torch.where(mask, a, 1e-30), "not 0 on padding"),
        (lambda a, mask: torch.where(mask, torch.nan, 0.0), "deviation nan"),
    ],
)
def test_advantages_that_are_not_white_are_caught(
    change: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    experience = stepped()[1]
    wrong = change(experience.advantages, experience.given.mask)
    with pytest.raises(InvariantError, match=message):
        invariants.check_advantages(dataclasses.replace(experience, advantages=wrong))


def test_advantages_of_equal_returns_may_be_zero() -> None:
    experience = stepped()[1]
    nothing = torch.zeros_like(experience.advantages)
    invariants.check_advantages(dataclasses.replace(experience, advantages=nothing))


@pytest.mark.parametrize("name", NAMES)
def test_a_log_prob_that_is_off_by_one_ulp_is_caught_in_the_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another code path for the new log-probs: one token of the first minibatch, one ulp."""

    def other(*arguments: Any, **options: Any) -> Any:
        figures = forward(*arguments, **options)
        shift = torch.zeros_like(figures.logprobs)
        here = figures.logprobs[0, 0].detach()
        away = torch.tensor(-torch.inf, dtype=here.dtype)
        shift[0, 0] = torch.nextafter(here, away) - here
        return dataclasses.replace(figures, logprobs=figures.logprobs + shift)

    monkeypatch.setattr("precision_lib.training.update.forward", other)
    with opened(name) as run, pytest.raises(InvariantError, match="the ratio is not 1 before any"):
        ppo_step(run)


def test_a_ratio_that_is_not_one_is_caught_by_each_of_its_signs() -> None:
    with opened("fp32_baseline") as run:
        found = update(run.models, run.weights, experience_of(run), run.settings, 0)
    invariants.check_first_update(found)
    tiny = FORMATS["fp32"].smallest_subnormal
    for fault in (
        {"smallest_log_ratio": -tiny},
        {"largest_log_ratio": tiny},
        {"approx_kl": tiny},
        {"clip_frac": tiny},
        {"largest_log_ratio": torch.nan},
    ):
        ratios = [dataclasses.replace(found.ratios[0], **fault)]  # type: ignore[arg-type]  # by name
        with pytest.raises(InvariantError, match="the ratio is not 1"):
            invariants.check_first_update(Updates(ratios=ratios))


def test_a_gradient_longer_than_allowed_is_caught() -> None:
    with opened("fp32_baseline") as run:
        gradient = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        clip_gradient(gradient, run.settings.max_grad_norm)
        invariants.check_clipped(gradient, run.settings)
        for broken in (gradient * (1 + 8 * U), gradient.bfloat16(), gradient * torch.nan):
            with pytest.raises(InvariantError, match="the clipped gradient is torch"):
                invariants.check_clipped(broken, run.settings)


def test_an_unclipped_gradient_is_caught_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precision_lib.training.update.clip_gradient", lambda g, _: float(g.norm()))
    with opened("fp32_baseline", max_grad_norm=1e-3) as run:
        before = run.weights.master.clone()
        with pytest.raises(InvariantError, match=r"allowed is 0\.001"):
            ppo_step(run)
        assert torch.equal(run.weights.master, before), "it is caught before the step"


def test_checks_are_made_in_the_first_step_of_a_session_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened("fp32_baseline") as run:
        ppo_step(run)
        monkeypatch.setattr(invariants, "_require", None)
        ppo_step(run)
    with opened("fp32_baseline") as run, pytest.raises(TypeError):
        ppo_step(run)


def test_dropout_in_a_users_policy_ends_the_run_before_a_weight_moves() -> None:
    models = variant("policy", lambda model: model.train())
    models = dataclasses.replace(models, reference=pipeline().reference)
    with opened("fp32_baseline", models) as run, pytest.raises(InvariantError, match="dropout"):
        ppo_step(run)
